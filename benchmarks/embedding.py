"""`Encoder.embed` against the library's bare forward on the batches that it prepares: what preparing costs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mme5core.demo.base_model import build_base
from mme5core.encoder import Encoder
from mme5core.types import Content

NUM_ROWS, BATCH_SIZE, ROUNDS = 512, 32, 5


def contents() -> list[Content]:
    """Half texts of lognormal length, half pictures of 128 pixels."""
    random_ = random.Random(0)
    words = ["red", "heart", "faccina", "gatto", "солнце", "猫", "flag", "house"]
    texts = [
        Content(" ".join(random_.choices(words, k=max(1, min(60, round(random_.lognormvariate(2, 0.9)))))))
        for _ in range(NUM_ROWS // 2)
    ]
    noise = np.random.default_rng(0).integers(0, 255, (NUM_ROWS // 2, 128, 128, 3), dtype=np.uint8)
    return texts + [Content(image=Image.fromarray(pixels)) for pixels in noise]


def run(folder: Path, best_of: Callable[[dict[str, Callable[[], object]], int], dict[str, float]]) -> dict[str, object]:
    """Above 1: the share of the time that rendering, tokenising and preparing pictures add."""
    rows = contents()
    build_base(folder / "embedding", [row.text or "" for row in rows])
    encoder = Encoder.load(folder / "embedding", device="cpu")
    instructions: list[str | None] = [None] * len(rows)
    prepared = list(encoder.batches(rows, instructions, batch_size=BATCH_SIZE, max_batch_tokens=1 << 20))

    def bare() -> np.ndarray:
        result = np.empty((len(rows), encoder.dimension), dtype=np.float32)
        with torch.inference_mode():
            for batch in prepared:
                state = encoder.module.model(**batch.inputs, use_cache=False).last_hidden_state
                last = batch.inputs["attention_mask"].sum(dim=1) - 1
                pooled = state[torch.arange(len(last)), last]
                result[batch.rows] = torch.nn.functional.normalize(pooled, dim=-1).numpy()
        return result

    def ours() -> np.ndarray:
        return encoder.embed(rows, batch_size=BATCH_SIZE, max_batch_tokens=1 << 20)

    difference = float(np.abs(bare() - ours()).max())
    assert difference < 1e-5, f"the two sides differ by {difference}"
    best = best_of({"bare": bare, "ours": ours}, ROUNDS)
    return {
        "ratio": round(best["ours"] / best["bare"], 3),
        "n": NUM_ROWS,
        "dtype": "float32",
        "model": "tiny mllama, 2.6 M parameters: preparing weighs far more than on a real one",
    }
