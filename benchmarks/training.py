"""A GradCache step against the bare passes it is made of, and the vision tower once against twice."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import checkpoints
from mme5core.adapters import add_adapter
from mme5core.encoder import Encoder
from mme5core.training.contrastive import ContrastiveTask
from mme5core.training.fit import StepResult, fit
from mme5core.training.gradcache import PlainEngine
from mme5core.training.objective import Objective
from mme5core.training.picture_cache import PictureCache
from mme5core.training.sampling import BatchSampler
from mme5core.training.step_batches import StepBatches
from mme5core.training.step_gradient import with_features
from mme5core.types import Content, Sample

BATCH_SIZE, NUM_NEGATIVES, CHUNK_ROWS, NUM_SAMPLES, ROUNDS, THREADS = 16, 1, 8, 64, 5, 1
NUM_WORDS = 20

BestOf = Callable[[dict[str, Callable[[], object]], int], dict[str, float]]


def run(folder: Path, best_of: BestOf) -> dict[str, object]:
    """`over_bare`: a step's time over tower forward, a forward without and one with gradient and its backward, on
    resident batches. `tower_twice`: the same step with the tower in both passes, over the step."""
    torch.set_num_threads(THREADS)  # the other core prepares the next batch, as another device would
    base = checkpoints.mllama_to_train(folder / "training")
    parts: dict[str, float] = {}
    steps = {once: _steps(base, tower_once=once) for once in (True, False)}
    first = {once: next(results).loss for once, results in steps.items()}
    assert abs(first[True] - first[False]) < 1e-4, first
    times = best_of(
        {
            "once": lambda: next(steps[True]),
            "twice": lambda: next(steps[False]),
            "bare": _bare(base, parts),
        },
        ROUNDS,
    )
    torch.set_num_threads(2)
    return {
        "over_bare": round(times["once"] / times["bare"], 3),
        "tower_twice": round(times["twice"] / times["once"], 3),
        "tower_share_of_forward": round(parts["tower"] / (parts["tower"] + parts["language"]), 2),
        "n": BATCH_SIZE * (2 + NUM_NEGATIVES),
        "dtype": "float32",
        "threads": THREADS,
    }


def _encoder(base: Path) -> Encoder:
    encoder = Encoder.load(base, device="cpu", attention="eager")
    encoder.module.model = add_adapter(
        encoder.module.model, rank=8, alpha=16, dropout=0.0, targets="language", train_embeddings=False
    )
    return encoder


def _steps(base: Path, *, tower_once: bool) -> Iterator[StepResult]:
    encoder, samples = _encoder(base), _samples()
    optimizer = torch.optim.AdamW([p for p in encoder.module.parameters() if p.requires_grad])
    return fit(
        PlainEngine(encoder.module, optimizer, max_grad_norm=1.0),
        encoder,
        samples,
        BatchSampler(["IT2IT"] * len(samples), range(len(samples)), batch_size=BATCH_SIZE, seed=0),
        task=ContrastiveTask(encoder, Objective(0.05), NUM_NEGATIVES),
        num_steps=1000,
        learning_rate=1e-5,
        warmup_ratio=0.0,
        grad_cache=True,
        tower_once=tower_once,
        chunk_rows=CHUNK_ROWS,
    )


def _bare(base: Path, parts: dict[str, float]) -> Callable[[], object]:
    """The passes of a step on prepared inputs; keeps in `parts` the seconds of tower and language model forward."""
    encoder = _encoder(base)
    encoder.module.train()
    cache, task = PictureCache(encoder, 1 << 30), ContrastiveTask(encoder, Objective(0.05), NUM_NEGATIVES)
    batches = StepBatches(encoder, cache, task, CHUNK_ROWS, 1 << 20, tower_once=True)
    prepared = batches.prepare(_samples()[:BATCH_SIZE], 0, seed=0)
    autocast = partial(torch.autocast, "cpu", enabled=False)

    def passes() -> None:
        started = time.perf_counter()
        fresh = replace(prepared, pictures=dict(prepared.pictures))
        batches = with_features(fresh, encoder, autocast, 1 << 30)
        parts["tower"] = time.perf_counter() - started
        with torch.no_grad():
            for batch in batches:
                encoder.module([batch])
        parts["language"] = time.perf_counter() - started - parts["tower"]
        for batch in batches:
            encoder.module([batch])[:, 0].sum().backward()
        encoder.module.zero_grad()

    return passes


def _samples() -> list[Sample]:
    return [
        Sample(str(n), _content(n), _content(n + 1000), (_content(n + 2000),), "Find the picture:")
        for n in range(NUM_SAMPLES)
    ]


def _content(number: int) -> Content:
    pixels = np.random.default_rng(number).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return Content(checkpoints.words(NUM_WORDS, number), buffer.getvalue())
