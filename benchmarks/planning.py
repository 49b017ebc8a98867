"""How the time and memory of `synth`'s planning grow with the corpus, and what a second core brings.

    python -m benchmarks.planning

Pictures by name alone (no bytes are read in planning), ten neighbours each at random. Time is that of `make_plan`, from
the index of the corpus and the neighbours folder to the plan on disk; memory is the peak of the process that runs it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.corpus.index import INDEX, Index, id_key
from mme5core.corpus.scan import find_duplicates
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.synthesis.plan import PlanSettings
from mme5core.synthesis.planning import make_plan
from mme5core.tasks import Item, run_here
from rayjobs.folder.versions import versions
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.tasks import run_on_ray

NUM_PICTURES = (100_000, 400_000, 1_600_000)
NUM_NEIGHBOURS, PER_SHARD, PER_FILE = 10, 10_000, 100_000


def write_index(folder: Path, num_pictures: int) -> None:
    """As the scan writes it."""
    folder.mkdir(parents=True)
    starts = starts_of(num_pictures)
    for shard, start in enumerate(starts[:-1]):
        ids = [name_of(n) for n in range(start, starts[shard + 1])]
        rows = {
            "id": ids,
            "id_key": [id_key(name) for name in ids],
            "key": [id_key(f"bytes of {name}") for name in ids],
            "offset": [20_000 * n for n in range(len(ids))],
            "num_bytes": [20_000] * len(ids),
        }
        table = pa.table({f.name: pa.array(rows.get(f.name, [None] * len(ids)), f.type) for f in INDEX})
        pq.write_table(table, folder / f"{shard:06d}.parquet", compression="zstd")
    find_duplicates(folder, np.array(starts))


def starts_of(num_pictures: int) -> list[int]:
    return [*range(0, num_pictures, PER_SHARD), num_pictures]


def open_index(folder: Path, num_pictures: int) -> Index:
    starts = starts_of(num_pictures)
    shards: list[AnyPath] = [Path(f"/corpus/{n:05d}.tar") for n in range(len(starts) - 1)]
    return Index(shards, folder, np.array(starts), num_pictures)


def write_neighbours(folder: Path, num_pictures: int) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for start in range(0, num_pictures, PER_FILE):
        queries = np.repeat(np.arange(start, min(start + PER_FILE, num_pictures)), NUM_NEIGHBOURS)
        rows = {
            "query_id": [name_of(n) for n in queries],
            "candidate_id": [name_of(n) for n in draw.integers(0, num_pictures, len(queries))],
            "rank": np.tile(np.arange(1, NUM_NEIGHBOURS + 1), len(queries) // NUM_NEIGHBOURS),
            "score": draw.random(len(queries)),
            "source": ["clip"] * len(queries),
        }
        table = pa.table({f.name: pa.array(rows[f.name], f.type) for f in NEIGHBOURS})
        pq.write_table(table, folder / f"{start:09d}.parquet")


def name_of(number: int) -> str:
    return f"{number:09d}"


def prepare(work: Path, num_pictures: int) -> None:
    write_index(work / "index", num_pictures)
    write_neighbours(work / "near", num_pictures)


def measure(work: Path, num_pictures: int, on_ray: bool, results: Any) -> None:
    """Seconds, samples and peak memory in MB, in a process of its own."""
    index = open_index(work / "index", num_pictures)
    near: list[AnyPath] = sorted((work / "near").iterdir())

    def plan(run: Any) -> tuple[float, int]:
        started = time.perf_counter()
        made = make_plan(index, PlanSettings(), work, neighbours=near, num_workers=64, run=run)
        return time.perf_counter() - started, len(made)

    if on_ray:
        with connected():
            list(run_on_ray(_echo, [{"n": n} for n in range(4)]))  # its workers are started
            seconds, samples = plan(run_on_ray)
    else:
        seconds, samples = plan(run_here)
    results.put((seconds, samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10))
    shutil.rmtree(work)


def _echo(item: Item) -> Iterator[Item]:
    yield item


def main() -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "versions": versions()}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for num_pictures in NUM_PICTURES:
            for on_ray in (False, True):
                results, work = context.Queue(), Path(folder) / f"{num_pictures}-{on_ray}"
                preparing = context.Process(target=prepare, args=(work, num_pictures))
                preparing.start()
                preparing.join()
                process = context.Process(target=measure, args=(work, num_pictures, on_ray, results))
                process.start()
                seconds, samples, peak_mb = results.get()
                process.join()
                rows.append(
                    {
                        "samples": samples,
                        "neighbours": NUM_NEIGHBOURS * num_pictures,
                        "where": "Ray tasks" if on_ray else "one process",
                        "us_per_sample": round(1e6 * seconds / samples, 1),
                        "driver_peak_mb": peak_mb,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    figures["planning"] = rows
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
