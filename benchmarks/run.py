"""Speed as ratios measured in one run: make bench

Each benchmark runs its two sides in turn (A, B, A, B, ...) on the same weights, inputs, dtype and threads, checks that
they give the same result, and reports the ratio of the best times. The figures go to benchmarks/results/.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import adapters, attention, embedding, training
from rayjobs.folder.versions import versions

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = {
    "embed_over_bare_forward": embedding.run,
    "eager_over_fused_backward": attention.run,
    "train_step": training.run,
    "dora": adapters.run,
}


def best_of(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The shortest time of each side in seconds, the sides interleaved; one round before is not counted."""
    best = dict.fromkeys(sides, float("inf"))
    for number in range(rounds + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if number:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> None:
    torch.set_num_threads(2)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, benchmark in BENCHMARKS.items():
            figures[name] = benchmark(Path(folder), best_of)
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{report['date']}-cpu.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    main()
