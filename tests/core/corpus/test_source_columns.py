"""Columns of the input that go through to the output: their types and their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mme5core.corpus.source_columns import SourceColumns
from mme5core.errors import InputError
from mme5core.readers import ReadOptions
from tests.core.corpus.test_scan import index_of, row


def source_of(folder: Path, records: list[dict[str, Any]], columns: list[str]) -> tuple[SourceColumns, pa.ChunkedArray]:
    texts = [json.dumps(record) for record in records]
    index = index_of(folder, [row(str(n)) | {"source": text} for n, text in enumerate(texts)])
    return SourceColumns.of(index, columns, folder / "columns.json"), pa.chunked_array([texts])


@pytest.mark.parametrize(
    ("values", "expected", "type_"),
    [
        ([1, 2], [1, 2], pa.int64()),
        ([1, 2.5, None], [1.0, 2.5, None], pa.float64()),
        (["a", None], ["a", None], pa.string()),
        ([True, False], [True, False], pa.bool_()),
        ([True, 1], ["true", "1"], pa.string()),
        (["a", 1], ['"a"', "1"], pa.string()),
        ([["é"], {"b": 1}], ['["é"]', '{"b": 1}'], pa.string()),
        ([2**70, 1], [str(2**70), "1"], pa.string()),
        ([None, None], [None, None], pa.string()),
        ([2**53 + 1, 0.5], [float(2**53), 0.5], pa.float64()),
    ],
)
def test_a_column_has_the_type_of_its_values_or_is_json(
    values: list[Any], expected: list[Any], type_: pa.DataType, tmp_path: Path
) -> None:
    source, texts = source_of(tmp_path, [{"x": value} for value in values], ["x"])
    assert source.fields() == [pa.field("x", type_)]
    assert source.arrays(texts)["x"].to_pylist() == expected


def test_a_row_without_the_column_has_null_and_a_column_without_rows_is_refused(tmp_path: Path) -> None:
    source, texts = source_of(tmp_path, [{"x": 1}, {}], ["x"])
    assert source.arrays(texts)["x"].to_pylist() == [1, None]
    (tmp_path / "columns.json").unlink()
    with pytest.raises(InputError, match="'titel', which no row of the input has"):
        source_of(tmp_path, [{"title": "a"}, {}], ["title", "titel"])


def test_no_columns_are_no_fields(tmp_path: Path) -> None:
    source, texts = source_of(tmp_path, [{}], [])
    assert source.fields() == [] and source.arrays(texts) == {}


def test_half_a_surrogate_pair_is_written_out() -> None:
    text = ReadOptions(columns=("x",)).source({"x": "a\ud800b", "y": 1})
    (found,) = SourceColumns({"x": "str"}).arrays(pa.chunked_array([[text]]))["x"].to_pylist()
    assert found == "a\\ud800b"
