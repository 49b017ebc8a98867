"""`embed-corpus` killed in each of its phases, whole or in part: every row once, and nothing done is done again."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from tests.ray.conftest import (
    Ended,
    adds_up,
    command,
    kill_tree,
    kill_when,
    other_raylet,
    run_job,
    wait_for,
    workers_of,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NUM_SHARDS, ROWS_PER_SHARD, NUM_TEXTS = 6, 20_000, 3_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many rows of few texts: every phase takes some seconds."""
    folder = tmp_path_factory.mktemp("corpus")
    for shard in range(NUM_SHARDS):
        numbers = np.random.default_rng(shard).permutation(ROWS_PER_SHARD) + shard * ROWS_PER_SHARD
        texts = [f"text {n % NUM_TEXTS}" for n in numbers]
        pq.write_table(pa.table({"id": [f"{n:06d}" for n in numbers], "text": texts}), folder / f"{shard}.parquet")
    return folder


def args(corpus: Path, base: Path, output: Path, *more: str) -> list[str]:
    return [f"input={corpus}", f"model={base}", f"output={output}", "window_rows=100", "rows_per_file=2000", *more]


def read(output: Path) -> tuple[list[str], np.ndarray]:
    table = pa.concat_tables(pq.read_table(file) for file in sorted(output.glob("part-*.parquet")))
    return table["id"].to_pylist(), table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


@pytest.fixture(scope="module")
def unbroken(corpus: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], np.ndarray]:
    output = tmp_path_factory.mktemp("unbroken") / "out"
    ended = run_job("embed-corpus", *args(corpus, base, output))
    assert ended.code == 0, ended.stderr
    ids, vectors = read(output)
    shards = [pq.read_table(file)["id"].to_pylist() for file in sorted(corpus.glob("*.parquet"))]
    assert ids == [row_id for shard in shards for row_id in shard]  # in the order of the input
    return ids, vectors


def is_equal(output: Path, unbroken: tuple[list[str], np.ndarray]) -> None:
    assert adds_up(output)["distinct"] == NUM_TEXTS
    ids, vectors = read(output)
    assert ids == unbroken[0] and np.abs(vectors - unbroken[1]).max() < 1e-5
    assert not (output / "_work").exists()


def is_in(phase: str, output: Path) -> Callable[[], bool]:
    """Whether a run has begun a phase, and done a part of it."""
    work = output / "_work"
    parts = {
        "reading": lambda: len(list(work.glob("index/0*.parquet"))) >= 2,
        "embedding": lambda: len(list(work.glob("rows/*.arrow"))) >= 5,
        # All contents begin before the rows of part 20: only writing is left.
        "writing": lambda: len(list(output.glob("part-*.parquet"))) >= 20,
    }
    return parts[phase]


@pytest.mark.parametrize("driver_only", [False, True])
@pytest.mark.parametrize("phase", ["reading", "embedding", "writing"])
def test_a_killed_run_goes_on_where_it_was(
    phase: str, driver_only: bool, corpus: Path, base: Path, unbroken: tuple[list[str], np.ndarray], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    kill_when(
        "embed-corpus", *args(corpus, base, output), ready=is_in(phase, output), driver_only=driver_only, every_s=0.01
    )
    assert not (output / "_SUCCESS").exists()
    work = output / "_work"
    shards = list(work.glob("index/0*.parquet"))
    written = {file.name: file.stat().st_ino for file in output.glob("part-*.parquet")}
    num_embedded = sum(pa.ipc.open_file(file).read_all().num_rows for file in work.glob("rows/*.arrow"))
    if phase == "reading":
        assert 2 <= len(shards) < NUM_SHARDS and not num_embedded
    elif phase == "embedding":
        assert 500 <= num_embedded < NUM_TEXTS
    else:
        assert 20 <= len(written) < NUM_SHARDS * ROWS_PER_SHARD // 2_000
    again = run_job("embed-corpus", *args(corpus, base, output))
    assert again.code == 0, again.stderr
    is_equal(output, unbroken)
    if phase == "reading":
        assert first_count("reading", again) > len(shards) * ROWS_PER_SHARD
    elif phase == "embedding":
        assert first_count("contents", again) > num_embedded
    else:
        assert "of 3,000 contents" not in again.stderr
        assert written.items() <= {file.name: file.stat().st_ino for file in output.glob("part-*.parquet")}.items()


def first_count(what: str, ended: Ended) -> int:
    """The number in the first line of progress about something."""
    line = next(line for line in ended.stderr.splitlines() if what in line)
    found = re.search(r": ([\d,]+) ", line)
    assert found is not None, line
    return int(found[1].replace(",", ""))


def test_a_reading_task_that_is_killed_half_way_loses_no_row(base: Path, tmp_path: Path) -> None:
    # Long texts in many windows: reading waits for the encoder.
    texts = [f"text {n} " + "word " * 400 for n in range(8_000)]
    corpus, output = tmp_path / "corpus.parquet", tmp_path / "out"
    pq.write_table(pa.table({"id": [f"{n:05d}" for n in range(len(texts))], "text": texts}), corpus)
    with subprocess.Popen(
        command("embed-corpus", *args(corpus, base, output, "window_rows=20")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:

        def readers() -> list[psutil.Process]:
            return workers_of(process.pid, "ray::MapBatches(ReadWindows)")

        rows = output / "_work" / "rows"
        wait_for(process, lambda: len(list(rows.glob("*.arrow"))) >= 20 and bool(readers()), every_s=0.01)
        readers()[0].kill()
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    counters = json.loads(out.strip().splitlines()[-1])["counters"]
    assert (counters["kept"], counters["pending"]) == (len(texts), 0)


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        ("reading", "ray::ScanShard"),
        ("embedding", "ray::MapWorker"),
        ("writing", "ray::WriteVectors"),
    ],
)
def test_a_killed_actor_or_task_is_made_up_for_by_the_run_itself(
    phase: str, name: str, corpus: Path, base: Path, unbroken: tuple[list[str], np.ndarray], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with subprocess.Popen(
        command("embed-corpus", *args(corpus, base, output)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        ready = is_in(phase, output)
        wait_for(process, lambda: ready() and bool(workers_of(process.pid, name)), every_s=0.01)
        workers_of(process.pid, name)[0].kill()
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert json.loads(out.strip().splitlines()[-1])["code"] == 0
    is_equal(output, unbroken)


@pytest.mark.parametrize("phase", ["reading", "embedding", "writing"])
def test_a_killed_node_is_made_up_for_by_the_others(
    phase: str, two_nodes: object, corpus: Path, base: Path, unbroken: tuple[list[str], np.ndarray], tmp_path: Path
) -> None:
    cluster: object = two_nodes
    output = tmp_path / "out"
    env = os.environ | {"RAY_ADDRESS": cluster.address}  # type: ignore[attr-defined]
    with subprocess.Popen(
        command("embed-corpus", *args(corpus, base, output, "num_workers=2")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        raylet = other_raylet(cluster)
        ready, name = is_in(phase, output), {"embedding": "ray::MapWorker"}.get(phase, "ray::")
        wait_for(process, lambda: ready() and bool(workers_of(raylet, name)), every_s=0.01)
        kill_tree(raylet)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out.strip().splitlines()[-1])["code"] == 0
    is_equal(output, unbroken)
