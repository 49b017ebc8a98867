"""Tests of a benchmark and its vectors on disk: read as they stand, refused by file and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.errors import InputError
from mme5core.evaluation.benchmark import read_benchmark, read_vectors
from mme5core.schemas import CANDIDATES, QUERIES
from mme5core.types import Content, EvalQuery

Row = dict[str, Any]
QUERY: Row = {"id": "q", "text": "un gatto", "instruction": "Find:", "language": "it", "positive_id": "c"}
CANDIDATE: Row = {"id": "c", "image": {"bytes": b"\xff", "path": None}, "text": None}


def benchmark_at(folder: Path, queries: list[Row] | None = None, candidates: list[Row] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [QUERY] if queries is None else queries
    pq.write_table(pa.Table.from_pylist(rows, QUERIES), folder / "queries.parquet")
    rows = [CANDIDATE] if candidates is None else candidates
    pq.write_table(pa.Table.from_pylist(rows, CANDIDATES), folder / "candidates.parquet")
    return folder


def vectors_at(
    file: Path, rows: dict[str, list[float] | None], *, model: str = "", kind: pa.DataType | None = None
) -> str:
    schema = pa.schema([("id", pa.string()), ("embedding", kind or pa.list_(pa.float32(), 2))])
    table = pa.Table.from_pydict({"id": list(rows), "embedding": list(rows.values())}, schema)
    pq.write_table(table.replace_schema_metadata({"mme5.model_identity": model} if model else None), file)
    return str(file)


def as_lists(found: dict[str, np.ndarray]) -> dict[str, list[float]]:
    assert all(vector.dtype == np.float32 for vector in found.values())
    return {name: vector.tolist() for name, vector in found.items()}


def test_queries_and_candidates_come_in_their_order(tmp_path: Path) -> None:
    queries = [QUERY | {"id": name, "text": text, "instruction": None} for name, text in (("z", "b"), ("a", None))]
    candidates = [CANDIDATE, CANDIDATE | {"id": "b", "image": None, "text": "a dog"}]
    found = read_benchmark(benchmark_at(tmp_path / "xtd", queries, candidates))
    assert found.name == "xtd"
    assert found.queries == [
        EvalQuery("z", Content("b"), None, {"c": 1.0}, language="it"),
        EvalQuery("a", None, None, {"c": 1.0}, language="it"),
    ]
    assert found.candidate_ids == ["c", "b"]
    assert found.contents == [Content(image=b"\xff"), Content("a dog")]


@pytest.mark.parametrize("name", ["queries.parquet", "candidates.parquet"])
def test_a_missing_a_broken_and_a_foreign_file_are_input_errors_that_name_it(tmp_path: Path, name: str) -> None:
    file = benchmark_at(tmp_path / "xtd") / name
    for write, message in (
        (lambda: pq.write_table(pa.table({"id": ["q"]}), file), "no column"),
        (lambda: file.write_bytes(b"half"), "cannot be read"),
        (file.unlink, "it has no"),
    ):
        write()
        with pytest.raises(InputError, match=message) as caught:
            read_benchmark(tmp_path / "xtd")
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("queries", "candidates", "message"),
    [
        ([QUERY, QUERY], None, "a query id occurs twice"),
        (None, [CANDIDATE, CANDIDATE], "a candidate id occurs twice"),
        ([], None, "no query"),
        (None, [], "no candidate"),
        (None, [CANDIDATE | {"image": None}], "candidate"),
        ([QUERY | {"id": "c"}], None, "'c' is the id of a query and of a candidate"),
    ],
)
def test_a_benchmark_that_cannot_be_scored_is_an_input_error(
    tmp_path: Path, queries: list[Row] | None, candidates: list[Row] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_benchmark(benchmark_at(tmp_path / "xtd", queries, candidates))


def test_vectors_are_found_by_id_in_all_files_and_only_those_wanted(tmp_path: Path) -> None:
    vectors_at(tmp_path / "a.parquet", {"a": [1, 0], "x": [9, 9]})
    vectors_at(tmp_path / "b.parquet", {"b": [0, 1]})
    assert as_lists(read_vectors([str(tmp_path)], ["b", "a", "gone"])) == {"a": [1, 0], "b": [0, 1]}


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32(), 2), pa.list_(pa.float16(), 2), pa.list_(pa.float64(), 2), pa.list_(pa.float32())]
)
def test_vectors_are_read_from_every_list_of_floats(tmp_path: Path, kind: pa.DataType) -> None:
    shard = vectors_at(tmp_path / "a.parquet", {"a": [0.5, -1.0], "b": [0.25, 2.0]}, kind=kind)
    assert as_lists(read_vectors([shard], ["a", "b"])) == {"a": [0.5, -1.0], "b": [0.25, 2.0]}


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 2), pa.list_(pa.float32())])
def test_a_row_without_vector_is_left_out_and_moves_no_other(tmp_path: Path, kind: pa.DataType) -> None:
    rows: dict[str, list[float] | None] = {"a": [1, 2], "b": None, "c": [3, 4], "d": [5, 6]}
    try:
        file = vectors_at(tmp_path / "a.parquet", rows, kind=kind)
    except pa.ArrowNotImplementedError:
        pytest.skip("this version of pyarrow writes no null among lists of one size")
    found = as_lists(read_vectors([file], list(rows)))
    assert found == {"a": [1, 2], "c": [3, 4], "d": [5, 6]}


def test_vectors_of_two_models_are_refused_and_of_one_model_are_not(tmp_path: Path) -> None:
    shards = [vectors_at(tmp_path / f"{n}.parquet", {n: [1, 0]}, model=m) for n, m in zip("abc", "112", strict=True)]
    assert set(read_vectors(shards[:2], ["a", "b"])) == {"a", "b"}
    with pytest.raises(InputError, match="different models"):
        read_vectors(shards, ["a"])


def test_a_file_without_vectors_and_a_broken_one_are_input_errors(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"half")
    for name, message in (("a.parquet", "no vectors; its columns are id, text"), ("b.parquet", "b.parquet")):
        with pytest.raises(InputError, match=message):
            read_vectors([str(tmp_path / name)], ["a"])


def test_a_second_vector_of_an_id_is_an_input_error(tmp_path: Path) -> None:
    files = [vectors_at(tmp_path / f"{name}.parquet", {"q": [1.0, 0.0]}) for name in "ab"]
    with pytest.raises(InputError, match="a second vector of id 'q'"):
        read_vectors(files, ["q"])
