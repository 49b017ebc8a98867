"""Embedding at the real sizes, random weights: python -m benchmarks.gpu_embedding [--small]

Llama-3.2-11B-Vision on prepared batches: texts of 64 and 256 tokens, pictures of one and of four tiles with our
attention in the tower and with the library's, each as rows a second and as a share of the accelerator's peak. Then
Qwen2-VL-2B from JPEG files on disk to a Parquet file: pictures a second, and how long the accelerator waits.
Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import checkpoints, embedding, full_size
from mme5core.backbones import mllama
from mme5core.encoder import Encoder
from mme5core.types import Content

# TFLOP of a row, counted on the real shape: texts by tokens, a picture of four tiles with a short prompt.
TEXT_TERAFLOPS = {64: 0.896, 256: 3.608}
PICTURE_TERAFLOPS = 20.4
NUM_BATCHES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="small models on whatever device: does it run at all")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="that decode pictures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for figures in (roof(folder, small=arguments.small), pipeline(folder, arguments.small, arguments.threads)):
            print(json.dumps(figures), flush=True)


def roof(folder: Path, *, small: bool) -> dict[str, Any]:
    encoder = _small(folder, "mllama") if small else full_size.mllama_11b()
    scale = 168 / 560 if small else 1.0
    rows_per_batch = 4 if small else 32
    report: dict[str, Any] = {"model": "small mllama" if small else "Llama-3.2-11B-Vision"}
    for num_tokens, work in TEXT_TERAFLOPS.items():
        texts = [Content(_text_of(encoder, num_tokens, seed)) for seed in range(NUM_BATCHES * 8 * rows_per_batch)]
        report[f"text_{num_tokens}"] = _rate(encoder, texts, 8 * rows_per_batch, work)
    for tiles, size in ((1, (500, 400)), (4, (1024, 768))):
        width, height = (round(side * scale) for side in size)
        pictures = [Content(image=embedding.jpeg(n, (width, height))) for n in range(NUM_BATCHES * rows_per_batch)]
        work = PICTURE_TERAFLOPS if tiles == 4 else None
        report[f"pictures_{tiles}_tiles"] = _rate(encoder, pictures, rows_per_batch, work)
        split = mllama.unmasked_tiles
        mllama.unmasked_tiles = lambda vision_model: nullcontext()  # type: ignore[assignment]
        report[f"pictures_{tiles}_tiles_library"] = _rate(encoder, pictures, rows_per_batch, work)
        mllama.unmasked_tiles = split
    return report


def _rate(encoder: Encoder, rows: Sequence[Content], batch_size: int, teraflops: float | None) -> dict[str, float]:
    prepared = list(
        encoder.batches(
            rows, [None] * len(rows), max_batch_rows=batch_size, max_batch_tokens=1 << 20, share_pictures=True
        )
    )
    encoder.embed_batch(prepared[0])

    def run() -> None:
        for batch in prepared:
            encoder.embed_batch(batch)

    per_s = len(rows) / _seconds(run)
    figures = {"rows_per_s": round(per_s, 2)}
    if teraflops and torch.cuda.is_available():
        figures["share_of_peak"] = round(per_s * teraflops * 1e12 / full_size.PEAK_FLOPS, 3)
        figures["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    return figures


def pipeline(folder: Path, small: bool, num_threads: int) -> dict[str, Any]:
    encoder = _small(folder, "qwen2_vl") if small else full_size.qwen2_vl_2b()
    files = folder / "pictures"
    files.mkdir()
    count, size = (32, (160, 120)) if small else (4096, (512, 384))
    for number in range(count):
        (files / f"{number}.jpg").write_bytes(embedding.jpeg(number, size))
    busy = 0.0

    def run() -> None:
        nonlocal busy
        busy = 0.0
        contents = [Content(image=files / f"{number}.jpg") for number in range(count)]
        schema = pa.schema([("row", pa.int64()), ("embedding", pa.list_(pa.float32(), encoder.dimension))])
        embed_batch = encoder.embed_batch

        def timed(batch: Any) -> Any:
            nonlocal busy
            began = time.perf_counter()
            vectors = embed_batch(batch)  # waits for the device
            busy += time.perf_counter() - began
            return vectors

        encoder.embed_batch = timed  # type: ignore[method-assign]
        with pq.ParquetWriter(folder / "vectors.parquet", schema) as writer:
            for rows, vectors in encoder.stream(
                contents, [None] * count, max_batch_rows=32, max_batch_tokens=1 << 16, num_threads=num_threads
            ):
                column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), encoder.dimension)
                writer.write_table(pa.table([pa.array(rows), column], schema=schema))
        encoder.embed_batch = embed_batch  # type: ignore[method-assign]

    if not small:
        run()  # warms up
    seconds = _seconds(run)
    return {
        "model": "small qwen2_vl" if small else "Qwen2-VL-2B",
        "pictures_per_s": round(count / seconds, 1),
        "waiting": round(1 - busy / seconds, 3),
        "threads": num_threads,
    }


def _seconds(run: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _text_of(encoder: Encoder, num_tokens: int, seed: int) -> str:
    """A text whose prompt has about as many tokens."""
    words = checkpoints.words(num_tokens, seed).split(" ")
    ids = encoder.token_ids([Content(" ".join(words))], [None])[0]
    return " ".join(words[: max(1, round(len(words) * num_tokens / len(ids)))])


def _small(folder: Path, family: str) -> Encoder:
    base = folder / family
    getattr(checkpoints, family)(base)
    encoder = Encoder.load(str(base), dtype="float32")
    encoder.max_tokens = embedding.MAX_TOKENS
    return encoder


if __name__ == "__main__":
    main()
