"""How memory and time of `embed-corpus` grow with the corpus: rows of a few words, and an encoder that costs nothing.

    python -m benchmarks.embed_scale --rows 10_000_000 --folder /big/disk

Memory is the sum over all processes of the job of their proportional set sizes (PSS), its peak; of each phase too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.embedding_settings import EmbeddingSettings
from mme5core.types import Content
from rayjobs.embed_corpus.config import EmbedCorpusConfig

WIDTH = 64
ROWS_PER_SHARD = 500_000
SAME_EVERY = 10
"""Every tenth row has the text of an earlier one."""


class FakeEncoder:
    """Vectors that tell which text they are of, without a model."""

    dimension = WIDTH

    def __init__(self, settings: EmbeddingSettings) -> None:
        pass

    def stream(
        self, contents: Sequence[Content], instructions: Sequence[str | None], **options: Any
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        if contents:
            yield list(range(len(contents))), vectors_of([content.text or "" for content in contents])


def vectors_of(texts: Sequence[str]) -> np.ndarray:
    """float32 [N, WIDTH]: the number that a text ends with, in its digits to base 16; not unit vectors."""
    numbers = np.array([int(text.rsplit(" ", 1)[1]) for text in texts])
    return ((numbers[:, None] >> (4 * np.arange(WIDTH))[None].clip(max=60)) & 15).astype(np.float32)


def text_of(number: int) -> str:
    return f"a short text about the thing {number}"


def write_corpus(folder: Path, num_rows: int) -> None:
    folder.mkdir(parents=True)
    for shard, start in enumerate(range(0, num_rows, ROWS_PER_SHARD)):
        numbers = np.arange(start, min(start + ROWS_PER_SHARD, num_rows))
        # Ids in no order, so that every output file reads from everywhere.
        ids = [f"{(int(n) * 7919) % 10**9:09d}-{n}" for n in numbers]
        texts = [text_of(content_of(int(n))) for n in numbers]
        pq.write_table(pa.table({"id": ids, "text": texts}), folder / f"{shard:05d}.parquet")


def content_of(number: int) -> int:
    return number // 2 if number % SAME_EVERY == 0 else number


def check(output: Path, num_rows: int) -> None:
    """Every id once, in the order of the input over all files, with the vector of its own text."""
    seen = np.zeros(num_rows, dtype=bool)
    last = -1
    for file in sorted(output.glob("part-*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=65_536):
            ids = batch.column("id").to_pylist()
            numbers = np.array([int(i.split("-")[1]) for i in ids])
            assert numbers.tolist() == list(range(last + 1, last + 1 + len(ids)))
            last = int(numbers[-1])
            assert not seen[numbers].any() and len(set(numbers.tolist())) == len(numbers)
            seen[numbers] = True
            stored = batch.column("embedding").flatten().to_numpy().reshape(-1, WIDTH)
            assert np.array_equal(stored, vectors_of([text_of(content_of(int(n))) for n in numbers]))
    assert seen.all()


def _run(config: EmbedCorpusConfig) -> None:
    from benchmarks.embed_scale import FakeEncoder  # not of __main__, which the workers do not have
    from rayjobs.embed_corpus import job

    print(job.run(config, load=FakeEncoder).counters)


def measure(folder: Path, num_rows: int, num_workers: int) -> dict[str, Any]:
    """Run the job in processes of its own; their peak memory and how long each phase took."""
    shutil.rmtree(folder, ignore_errors=True)
    write_corpus(folder / "corpus", num_rows)
    model = folder / "model"
    _write_model(model)
    config = EmbedCorpusConfig(
        input=[str(folder / "corpus")],
        model=str(model),
        output=str(folder / "out"),
        num_workers=num_workers,
        window_rows=8192,
    )
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(config,))
    began = time.perf_counter()
    process.start()
    peaks: dict[str, int] = {}
    entered: dict[str, float] = {}
    work = folder / "out" / "_work"
    while process.is_alive():
        phase = (
            "writing"
            if any((folder / "out").glob("part-*.parquet"))
            else "embedding"
            if (work / "contents.npy").exists()
            else "reading"
            if (work / "index").exists()
            else "starting"
        )
        entered.setdefault(phase, time.perf_counter() - began)
        peaks[phase] = max(peaks.get(phase, 0), _pss(process.pid))
        time.sleep(1.0)
    process.join()
    assert process.exitcode == 0, "the job failed"
    seconds = time.perf_counter() - began
    check(folder / "out", num_rows)
    ends = [*list(entered.values())[1:], seconds]
    return {
        "rows": num_rows,
        "seconds": round(seconds),
        "rows_per_s": round(num_rows / seconds),
        "peak_mb": round(max(peaks.values()) / 1e6),
        "phases": {
            phase: {"seconds": round(end - start), "peak_mb": round(peaks[phase] / 1e6)}
            for (phase, start), end in zip(entered.items(), ends, strict=True)
        },
    }


def _write_model(folder: Path) -> None:
    """A folder that passes for a model of the width; its weights are never read."""
    folder.mkdir()
    config = {"model_type": "mllama", "text_config": {"hidden_size": WIDTH}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).write_text("{}")


def _pss(pid: int | None) -> int:
    """Bytes of a process and of all below it."""
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_600_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    print(json.dumps({"cpus": os.cpu_count(), "width": WIDTH, "same_every": SAME_EVERY}))
    for rows in args.rows:
        print(json.dumps(measure(args.folder / str(rows), rows, args.workers)), flush=True)
        shutil.rmtree(args.folder / str(rows))


if __name__ == "__main__":
    main()
