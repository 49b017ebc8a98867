"""What Ray adds to embedding: the job's time per batch, start-up aside, over the time that the batch takes alone.

    python -m benchmarks.ray_efficiency

Two slopes of the job's embedding phase between n and 4 n rows: with an encoder that takes exactly 100 ms
for a batch, and with a small mllama against its bare forward on prepared batches.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import checkpoints
from benchmarks.embedding import BATCH_SIZE, bare_forward, jpeg
from mme5core.corpus.embedding_worker import load_encoder
from mme5core.embedding_settings import EmbeddingSettings
from mme5core.encoder import Encoder
from mme5core.types import Content
from rayjobs.embed_corpus import job
from rayjobs.embed_corpus.config import EmbedCorpusConfig

BATCH_S = 0.1
NUM_BATCHES = 50


class SleepingEncoder:
    """100 ms for every batch of its windows, as an accelerator that leaves the processor alone."""

    dimension = 128

    def __init__(self, settings: EmbeddingSettings) -> None:
        pass

    def stream(
        self, contents: Sequence[Content], instructions: Sequence[str | None], **options: Any
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        for start in range(0, len(contents), BATCH_SIZE):
            places = list(range(start, min(start + BATCH_SIZE, len(contents))))
            time.sleep(BATCH_S)
            yield places, np.ones((len(places), self.dimension), np.float32)


def on_one_thread(settings: EmbeddingSettings) -> Any:
    """The job's own encoder, with the other core left to what prepares its batches."""
    encoder = load_encoder(settings)
    torch.set_num_threads(1)
    return encoder


def slope(folder: Path, rows: list[dict[str, Any]], model: Path, load: Any) -> float:
    """Seconds for each batch beyond the first quarter of the rows."""
    seconds = []
    for count in (len(rows) // 4, len(rows)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for shard in range(4):
            part = rows[shard * count // 4 : (shard + 1) * count // 4]
            pq.write_table(pa.Table.from_pylist(part), folder / f"{shard}.parquet")
        config = EmbedCorpusConfig(
            input=[str(folder)],
            model=str(model),
            output=str(folder / "out"),
            window_rows=128,
            max_batch_rows=BATCH_SIZE,
        )
        seconds.append(_embedding_seconds(config, load))
    return (seconds[1] - seconds[0]) / (0.75 * len(rows) / BATCH_SIZE)


def _embedding_seconds(config: EmbedCorpusConfig, load: Any) -> float:
    """From the first contents' reading to the last vector's writing."""
    seconds = 0.0
    embed = job.embed_contents

    def timed(*args: Any, **kwargs: Any) -> Iterator[None]:
        nonlocal seconds
        began = time.perf_counter()
        yield from embed(*args, **kwargs)
        seconds = time.perf_counter() - began

    job.embed_contents = timed  # type: ignore[attr-defined]
    try:
        job.run(config, load=load)
    finally:
        job.embed_contents = embed  # type: ignore[attr-defined]
    return seconds


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        base = checkpoints.mllama(folder / "model")
        texts = [{"id": str(n), "text": f"text {n}"} for n in range(4 * NUM_BATCHES * BATCH_SIZE)]
        per_batch = slope(folder / "sleep", texts, base, _of_module("SleepingEncoder"))
        print(json.dumps({"marginal_efficiency_at_100_ms": round(BATCH_S / per_batch, 3), "batches": 4 * NUM_BATCHES}))
        pictures = [{"id": str(n), "image": jpeg(n, (320, 240))} for n in range(256)]
        per_batch = slope(folder / "model-job", pictures, base, _of_module("on_one_thread"))
        torch.set_num_threads(1)
        encoder = Encoder.load(str(base), device="cpu", dtype="float32")
        bare = bare_forward(encoder, [Content(image=row["image"]) for row in pictures[:64]])
        bare()
        times = []
        for _ in range(5):
            began = time.perf_counter()
            bare()
            times.append((time.perf_counter() - began) / (64 / BATCH_SIZE))
        print(json.dumps({"job_over_bare_forward": round(per_batch / min(times), 3), "pictures": 256, "tiles": 4}))


def _of_module(name: str) -> Any:
    from benchmarks import ray_efficiency  # not of __main__, which the workers do not have

    return getattr(ray_efficiency, name)


if __name__ == "__main__":
    main()
