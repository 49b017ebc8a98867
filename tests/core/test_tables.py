"""Files that a setting names (neighbours, holdout): each that cannot be used is named with its setting."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.errors import InputError, WorkFailed
from mme5core.schemas import NEIGHBOURS
from mme5core.tables import column_tables, errors_name_setting, files_with

ROW = {"query_id": "a", "candidate_id": "b", "rank": 1, "score": 0.5, "source": "clip"}


def write(file: Path, **changes: Any) -> str:
    pq.write_table(pa.Table.from_pylist([ROW | changes] * 4), file, row_group_size=2)
    return str(file)


def test_columns_of_another_width_are_taken(tmp_path: Path) -> None:
    (file,) = files_with(write(tmp_path / "near.parquet", rank=1.0, more="x"), NEIGHBOURS, "neighbours")
    (table,) = column_tables(file, NEIGHBOURS, "neighbours")
    assert table.schema == NEIGHBOURS and table.to_pylist() == [ROW] * 4
    assert sum(len(table) for table in column_tables(file, NEIGHBOURS, "neighbours", groups=[1])) == 2


def test_a_file_without_rows_is_one_without_pairs(tmp_path: Path) -> None:
    pq.ParquetWriter(tmp_path / "near.parquet", NEIGHBOURS).close()
    (file,) = files_with(str(tmp_path / "near.parquet"), NEIGHBOURS, "neighbours")
    assert list(column_tables(file, NEIGHBOURS, "neighbours")) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query_id": [1]}, "column 'query_id': Unsupported cast from list"),
        ({"rank": {"of": 1}}, "column 'rank': Unsupported cast from struct"),
    ],
)
def test_a_column_of_another_kind_is_told_before_anything_is_read(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"^neighbours '{tmp_path}/near.parquet' cannot be read \({said}"):
        files_with(write(tmp_path / "near.parquet", **changes), NEIGHBOURS, "neighbours")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 1.5}, "column 'rank': Float value 1.50* was truncated"),
        ({"score": "high"}, "column 'score': Failed to parse string: 'high'"),
    ],
)
def test_a_value_that_cannot_be_one_is_told_with_its_file(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (file,) = files_with(write(tmp_path / "near.parquet", **changes), NEIGHBOURS, "neighbours")
    with pytest.raises(InputError, match=rf"^neighbours '{tmp_path}/near.parquet' cannot be read \({said}"):
        list(column_tables(file, NEIGHBOURS, "neighbours"))


def test_a_page_that_is_broken_is_told_with_its_file(tmp_path: Path) -> None:
    (file,) = files_with(write(tmp_path / "near.parquet"), NEIGHBOURS, "neighbours")
    data = bytearray((tmp_path / "near.parquet").read_bytes())
    data[4:80] = bytes(76)
    (tmp_path / "near.parquet").write_bytes(data)
    with pytest.raises(InputError, match=rf"^neighbours '{tmp_path}/near.parquet' cannot be read"):
        list(column_tables(file, NEIGHBOURS, "neighbours"))


def test_a_column_that_is_there_twice_is_told(tmp_path: Path) -> None:
    columns = [pa.array([ROW[name]], NEIGHBOURS.field(name).type) for name in [*NEIGHBOURS.names, "rank"]]
    pq.write_table(pa.Table.from_arrays(columns, names=[*NEIGHBOURS.names, "rank"]), tmp_path / "near.parquet")
    with pytest.raises(InputError, match=r"near.parquet' has 2 columns 'rank'; its columns are query_id"):
        files_with(str(tmp_path / "near.parquet"), NEIGHBOURS, "neighbours")


@pytest.mark.parametrize(("number", "kind"), [(errno.EMFILE, WorkFailed), (errno.ENOENT, InputError)])
def test_what_may_pass_is_no_mistake_of_the_users(number: int, kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind, match="neighbours 'near' cannot be read"), errors_name_setting("neighbours", Path("near")):
        raise OSError(number, os.strerror(number))
