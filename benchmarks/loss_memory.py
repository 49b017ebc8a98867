"""Memory of the loss against the size of the batch: python -m benchmarks.loss_memory

Each size runs in a process of its own; what is reported is the growth of its peak memory over the vectors' own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import torch
from torch.nn import functional as F

from mme5core.losses import info_nce

WIDTH, NUM_NEGATIVES = 256, 1
SIZES = (2048, 4096, 8192, 16384)


def main() -> None:
    for tiled in (True, False):
        for size in SIZES if tiled else SIZES[:3]:
            command = [sys.executable, "-m", "benchmarks.loss_memory", str(size), str(int(tiled))]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def measure(size: int, *, tiled: bool) -> dict[str, object]:
    """Megabytes of forward and backward of InfoNCE over `size` rows with all hard negatives as columns."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    query_BD, positive_BD = (F.normalize(torch.randn(size, WIDTH), dim=-1).requires_grad_() for _ in range(2))
    negative_BKD = F.normalize(torch.randn(size, NUM_NEGATIVES, WIDTH), dim=-1).requires_grad_()
    # Once in small, so that what a first backward pass loads does not count.
    info_nce(query_BD[:8], positive_BD[:8], negative_BKD[:8], temperature=0.02, negatives="all").backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = {} if tiled else {"tile_rows": size}
    info_nce(query_BD, positive_BD, negative_BKD, temperature=0.02, negatives="all", **rows).backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"rows": size, "columns": size * (1 + NUM_NEGATIVES), "width": WIDTH, "tiled": tiled, "MB": round(grown)}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), tiled=bool(int(sys.argv[2])))))
    else:
        main()
