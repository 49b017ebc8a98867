"""`mine` as a user runs it: neighbours of brute force, bad input in a line, and the same rows after being killed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.schemas import NEIGHBOURS
from tests.core.mining.vectors_on_disk import exact_vectors, write
from tests.ray.conftest import Ended, World, adds_up, command, kill_when, other_raylet, read_parts, run_job, wait_for

pytestmark = pytest.mark.ray
NUM_QUERIES, NUM_CANDIDATES = 60, 300


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("vectors")
    queries = write(folder / "q", [f"q{n}" for n in range(NUM_QUERIES)], exact_vectors(NUM_QUERIES, 1), model="one")
    candidates = write(folder / "c", [f"c{n}" for n in range(NUM_CANDIDATES)], exact_vectors(NUM_CANDIDATES, 2))
    return queries, candidates


def mine(sets: tuple[str, str], output: Path, *more: str, **options: Any) -> Ended:
    return run_job("mine", f"queries={sets[0]}", f"candidates={sets[1]}", f"output={output}", *more, **options)


def expected_rows(top_k: int) -> list[tuple[str, str, int, float]]:
    rows = []
    candidates = [f"c{n}" for n in range(NUM_CANDIDATES)]
    for number, scores in enumerate(exact_vectors(NUM_QUERIES, 1) @ exact_vectors(NUM_CANDIDATES, 2).T):
        ranked = sorted(zip(candidates, scores.tolist(), strict=True), key=lambda entry: (-entry[1], entry[0]))
        rows += [(f"q{number}", name, rank, score) for rank, (name, score) in enumerate(ranked[:top_k], 1)]
    return rows


def rows_of(output: Path) -> list[tuple[str, str, int, float]]:
    names = ("query_id", "candidate_id", "rank", "score")
    return [tuple(row[name] for name in names) for row in read_parts(output)]  # type: ignore[misc]


def test_neighbours_in_the_order_of_the_queries_whatever_the_files_and_workers(
    sets: tuple[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    ended = mine(sets, output, "top_k=7", "queries_per_file=25", "num_workers=2")
    assert ended.code == 0, ended.stderr
    assert rows_of(output) == expected_rows(7)
    assert pq.read_schema(output / "part-00000.parquet").equals(NEIGHBOURS)
    counters = adds_up(output)
    assert (counters["read"], counters["kept"], counters["neighbours"]) == (60, 60, 420)
    assert len(list(output.glob("part-*.parquet"))) == 3
    again = mine(sets, output, "top_k=7", "queries_per_file=25")
    assert again.code == 0 and again.summary["reason"] == "already done"
    other = mine(sets, output, "top_k=8", "queries_per_file=25")
    assert other.code == 2 and "top_k" in other.summary["reason"]


@pytest.mark.slow
def test_embedded_pictures_are_mined_and_synth_takes_their_neighbours(
    world: World, base: Path, teacher: Any, tmp_path: Path
) -> None:
    vectors, near = tmp_path / "vectors", tmp_path / "near"
    ended = run_job("embed-corpus", f"input={world.tars}", f"model={base}", f"output={vectors}")
    assert ended.code == 0, ended.stderr
    ended = mine((str(vectors), str(vectors)), near, "top_k=5")
    assert ended.code == 0, ended.stderr
    rows = read_parts(near)
    assert rows and all(row["query_id"] != row["candidate_id"] for row in rows)
    keys = {row["id"]: row["content_key"] for row in read_parts(vectors)}
    assert all(keys[row["query_id"]] != keys[row["candidate_id"]] for row in rows), "a copy is no neighbour"
    ended = run_job(
        "synth",
        f"input={world.tars}",
        f"output={tmp_path / 'synth'}",
        f"neighbours={near}",
        f"teacher.base_url={teacher.base_url}",
        "teacher.model=demo-teacher",
        "tasks={retrieval: 1}",
        "combinations={I2I: 1}",
        "samples_per_image=1",
        "limit=20",
    )
    assert ended.code == 0, ended.stderr
    assert {row["modality_combination"] for row in read_parts(tmp_path / "synth")} == {"I2I"}


def test_no_neighbour_at_all_is_code_1_and_says_why(sets: tuple[str, str], tmp_path: Path) -> None:
    ended = mine(sets, tmp_path / "out", "min_score=5")
    assert ended.code == 1 and "no_neighbour 60" in ended.summary["reason"]
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_the_preview_names_sizes_rules_and_work(sets: tuple[str, str], tmp_path: Path) -> None:
    ended = mine(sets, tmp_path / "out", "rules=[mme5, unime-v2]", "--dry-run")
    assert ended.code == 0
    for line in ("60 queries and 300 candidates, vectors of width 8", "rules: mme5, unime-v2", "new"):
        assert line in ended.stdout
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Work of some seconds in each of several parts."""
    folder = tmp_path_factory.mktemp("large")
    vectors = np.random.default_rng(0).standard_normal((12_000, 64)).astype(np.float32)
    for name, first in (("q", 0), ("c", 4000)):
        own = vectors[first : first + (4000 if name == "q" else 8000)]
        (folder / name).mkdir()
        table = pa.table({"id": [f"{name}{n}" for n in range(len(own))], "embedding": list(own)})
        pq.write_table(table, folder / name / "a.parquet", row_group_size=512)
    return str(folder / "q"), str(folder / "c")


@pytest.fixture(scope="module")
def unbroken(large: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("unbroken") / "out"
    assert mine(large, output, "queries_per_file=100").code == 0
    return read_parts(output)


def num_written(output: Path) -> int:
    return len(list((output / "_work").glob("parts/report-*.json")))


PHASES: dict[str, Callable[[Path], bool]] = {
    "indexing": lambda output: any((output / "_work").glob("candidates-*/ids")),
    "searching": lambda output: num_written(output) >= 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("driver_only", [False, True])
@pytest.mark.parametrize("phase", list(PHASES))
def test_a_killed_run_goes_on_with_what_it_has(
    phase: str, driver_only: bool, large: tuple[str, str], unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = [f"queries={large[0]}", f"candidates={large[1]}", f"output={output}", "queries_per_file=100"]
    for _ in range(2):
        kill_when("mine", *arguments, ready=lambda: PHASES[phase](output), driver_only=driver_only, every_s=0.01)
    assert not (output / "_SUCCESS").exists()
    reports = {file.name: file.stat().st_mtime_ns for file in (output / "_work").glob("parts/report-*.json")}
    assert len(reports) < 40 and (phase == "indexing" or len(reports) >= 5)
    ended = mine(large, output, "queries_per_file=100")
    assert ended.code == 0, ended.stderr
    assert read_parts(output) == unbroken
    if reports:
        assert f"mine: {100 * len(reports):,} of 4,000" in ended.stderr or len(reports) * 100 < 4000


@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_row(
    two_nodes: Any, large: tuple[str, str], unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    arguments = [f"queries={large[0]}", f"candidates={large[1]}", f"output={output}", "queries_per_file=100"]
    with subprocess.Popen(
        command("mine", *arguments, "num_workers=4"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(process, lambda: num_written(output) >= 5)
        psutil.Process(other_raylet(two_nodes)).kill()
        stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["code"] == 0
    assert read_parts(output) == unbroken


@pytest.mark.slow  # three jobs; its parts are tested in tests/core/mining
def test_faiss_finds_what_the_exact_search_finds_and_says_how_much(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    both = tuple(
        write(tmp_path / name, [f"{name}{n}" for n in range(len(own))], own)
        for name, own in (("q", vectors[:200]), ("c", vectors[200:]))
    )
    ended = mine((both[0], both[1]), tmp_path / "exact", "top_k=5")
    assert ended.code == 0, ended.stderr
    more = ["top_k=5", "search=faiss", "faiss.num_probed=999"]
    ended = mine((both[0], both[1]), tmp_path / "all", *more)
    assert ended.code == 0, ended.stderr
    assert "1.0000 of the exact neighbours of 200 queries are among those of FAISS" in ended.stderr
    assert [row[:3] for row in rows_of(tmp_path / "all")] == [row[:3] for row in rows_of(tmp_path / "exact")]
    assert json.loads((tmp_path / "all" / "_manifest.json").read_text())["recall"] == 1.0
    ended = mine((both[0], both[1]), tmp_path / "few", "top_k=5", "search=faiss", "faiss.num_probed=20")
    assert ended.code == 0 and 0.1 < json.loads((tmp_path / "few" / "_manifest.json").read_text())["recall"] < 1
