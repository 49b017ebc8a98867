"""Plain against fused attention in a training step on a CPU: why `train` asks for the plain one there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.embedding import contents
from mme5core.demo.base_model import build_base
from mme5core.encoder import Encoder

NUM_ROWS, ROUNDS = 256, 3


def run(folder: Path, best_of: Callable[[dict[str, Callable[[], object]], int], dict[str, float]]) -> dict[str, object]:
    """Above 1: how many times longer the fused attention takes for forward and backward."""
    rows = [content for content in contents(2 * NUM_ROWS, lambda draw: (8, 8)) if not content.images]
    build_base(folder / "attention", [row.text or "" for row in rows])
    sides: dict[str, Callable[[], object]] = {}
    sums = []
    for name in ("eager", "sdpa"):
        encoder = Encoder.load(folder / "attention", device="cpu", attention=name)
        batches = list(encoder.batches(rows, [None] * len(rows), max_batch_rows=64, max_batch_tokens=1 << 20))

        def step(encoder: Encoder = encoder, batches: list = batches) -> torch.Tensor:
            encoder.module.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                vector_ND = encoder.module(batches)
            vector_ND[:, 0].sum().backward()
            return vector_ND.detach()

        sums.append(step())
        sides[name] = step
    difference = float((sums[0] - sums[1]).abs().max())
    assert difference < 0.05, f"the two sides differ by {difference}"
    best = best_of(sides, ROUNDS)
    return {"ratio": round(best["sdpa"] / best["eager"], 3), "n": NUM_ROWS, "dtype": "bfloat16 autocast"}
