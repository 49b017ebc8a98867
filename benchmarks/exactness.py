"""How exact the training is, in figures: python -m benchmarks.exactness

For each model family the largest difference of a row's embedding between batches; for each loss, ZeRO stage and way of
computing a step, the largest relative difference of loss and gradient between two gloo processes and one process
without DeepSpeed. The tests assert bounds on the same measurements.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from mme5core import Encoder
from mme5core.demo.base_model import build_base
from mme5core.training.objective import Objective
from rayjobs.folder.versions import versions
from tests.core.backbones.families import FAMILIES, TEXTS, build
from tests.core.contents import mixed
from tests.core.training.exactness import Setting, largest_difference, step, steps_on

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = {
    "info_nce, own negatives": Objective(0.05),
    "info_nce, all negatives": Objective(0.05, negatives="all"),
    "symmetric": Objective(0.05, symmetric=True),
    "hardness 9": Objective(0.05, hardness=9.0),
    "margin": Objective(0.05, negatives="all", margin=("absolute", 0.02)),
    "matryoshka": Objective(0.05, matryoshka_dims=(16, 128)),
    "soft_label_kl": Objective(0.05, kind="soft_label_kl"),
}
STAGES = (None, 1, 2, 3)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        record = {
            "date": time.strftime("%Y-%m-%d"),
            "dtype": "float32",
            "versions": versions(),
            "batch_mates": {family: _batch_mates(build(family, Path(folder) / family)) for family in FAMILIES},
            "two_processes_over_one": _two_over_one(Path(folder)),
        }
    file = RESULTS / f"{record['date']}-exactness.json"
    file.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {file}")


def _batch_mates(checkpoint: Path) -> float:
    """The largest difference of an entry: alone, all together, and shuffled in batches of 3."""
    encoder, contents = Encoder.load(checkpoint, device="cpu", dtype="float32"), mixed()
    alone = np.concatenate([encoder.embed([content], "Find:") for content in contents])
    order = np.random.default_rng(0).permutation(len(contents))
    together = encoder.embed(contents, "Find:")
    shuffled = encoder.embed([contents[place] for place in order], "Find:", batch_size=3)
    return float(max(np.abs(together - alone).max(), np.abs(shuffled - alone[order]).max()))


def _two_over_one(folder: Path) -> dict[str, dict[str, list[float]]]:
    """By stage and loss: without and with a cache, dropout 0.3."""
    base = folder / "base"
    build_base(base, TEXTS)
    settings = [
        Setting(str(base), objective, dropout=0.3, chunk_rows=3, num_steps=2, grad_cache=cache)
        for objective in OBJECTIVES.values()
        for cache in (False, True)
    ]
    alone = [step(setting) for setting in settings]
    errors: dict[str, dict[str, list[float]]] = {}
    for stage in STAGES:
        here = [replace(setting, zero_stage=stage) for setting in settings]
        # A second ZeRO-3 engine in one process is many times slower than the first.
        groups = [[setting] for setting in here] if stage == 3 else [here]
        on_two = [
            processes
            for number, group in enumerate(groups)
            for processes in steps_on(2, group, folder / f"zero-{stage}-{number}")
        ]
        differences = [
            max(largest_difference(process, expected) for process in processes)
            for processes, expected in zip(on_two, alone, strict=True)
        ]
        name = "without DeepSpeed" if stage is None else f"ZeRO-{stage}"
        pairs = zip(differences[::2], differences[1::2], strict=True)
        errors[name] = {loss: list(pair) for loss, pair in zip(OBJECTIVES, pairs, strict=True)}
        print(f"{name}: {errors[name]}", flush=True)
    return errors


if __name__ == "__main__":
    main()
