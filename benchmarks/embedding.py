"""`Encoder.embed` from JPEG and text to vectors, against the library's bare forward on prepared, sorted batches."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.training import checkpoint
from mme5core.encoder import Encoder
from mme5core.types import Content

NUM_ROWS, BATCH_SIZE, ROUNDS, THREADS = 128, 16, 5, 1
WORDS = ["red", "heart", "faccina", "gatto", "солнце", "猫", "flag", "house"]


def contents(num_rows: int = NUM_ROWS) -> list[Content]:
    """Half texts of lognormal length, half pictures of 320 x 240 pixels."""
    random_ = random.Random(0)
    texts = [
        Content(" ".join(random_.choices(WORDS, k=max(1, min(60, round(random_.lognormvariate(2, 0.9)))))))
        for _ in range(num_rows // 2)
    ]
    return texts + [Content(image=_jpeg(number)) for number in range(num_rows // 2)]


def run(folder: Path, best_of: Callable[[dict[str, Callable[[], object]], int], dict[str, float]]) -> dict[str, object]:
    """`ratio`: the whole job in one process over the bare forward; what preparing adds, less what our path saves."""
    rows = contents()
    encoder = Encoder.load(checkpoint(folder / "embedding"), device="cpu")
    torch.set_num_threads(THREADS)  # the other core prepares, as it would beside an accelerator
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
    torch.set_num_threads(2)
    return {
        "ratio": round(best["ours"] / best["bare"], 3),
        "n": NUM_ROWS,
        "dtype": "float32",
        "threads": THREADS,
        "model": "small mllama, the tower's share of a picture row 0.87 as in the 11B",
    }


def _jpeg(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((320, 240)).save(buffer, "JPEG")
    return buffer.getvalue()
