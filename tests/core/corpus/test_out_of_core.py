"""Finding equal rows through files gives what doing it in memory gives."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mme5core.corpus.out_of_core import KeyTable, first_of_equal, keys_of, new_array


@pytest.mark.parametrize("rows_in_memory", [1 << 20, 300, 7])
def test_the_first_row_of_a_key_is_found_across_parts_and_rows_without_key_have_none(
    rows_in_memory: int, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    # Equal in one half of the key alone is not equal.
    keys = np.stack([draw.integers(0, 40, 2_000), draw.integers(0, 9, 2_000)], 1).astype(np.uint64)
    given = np.flatnonzero(draw.random(2_000) < 0.8)
    parts = [given[start : start + 90] for start in range(0, len(given), 90)]
    found = first_of_equal(((part, keys[part]) for part in parts), 2_000, tmp_path / "f", rows_in_memory=rows_in_memory)
    first: dict[tuple[int, ...], int] = {}
    expected = np.full(2_000, -1)
    for row in given:
        expected[row] = first.setdefault(tuple(keys[row]), row)
    assert np.array_equal(found, expected)
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("rows_in_memory", [1 << 20, 300, 7])
def test_a_table_of_keys_finds_the_row_of_each_and_of_no_other(rows_in_memory: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    # Many share a half with others.
    keys = np.stack(np.unravel_index(draw.permutation(400 * 9)[:2_000], (400, 9)), 1).astype(np.uint64)
    rows = np.sort(draw.permutation(5_000)[:2_000])
    parts = ((rows[start : start + 90], keys[start : start + 90]) for start in range(0, len(rows), 90))
    table = KeyTable.write(parts, 2_000, tmp_path / "keys", rows_in_memory=rows_in_memory)
    asked = np.stack(np.unravel_index(draw.permutation(410 * 10), (410, 10)), 1).astype(np.uint64)
    row_of = {tuple(key): row for key, row in zip(keys.tolist(), rows.tolist(), strict=True)}
    assert table.rows_of(asked).tolist() == [row_of.get(tuple(key), -1) for key in asked.tolist()]
    assert [file.name for file in tmp_path.iterdir()] == ["keys"]


def test_a_table_without_keys_finds_nothing(tmp_path: Path) -> None:
    table = KeyTable.write([], 0, tmp_path / "keys")
    assert table.rows_of(np.ones((3, 2), np.uint64)).tolist() == [-1, -1, -1]


def test_keys_of_a_sliced_column_are_its_own() -> None:
    column = pa.array([bytes([n]) * 16 for n in range(5)], pa.binary(16)).slice(2, 2)
    assert keys_of(column).tobytes() == b"\x02" * 16 + b"\x03" * 16
    assert keys_of(pa.array([], pa.binary(16))).shape == (0, 2)


def test_an_array_for_which_there_is_no_room_is_an_error_and_no_signal(tmp_path: Path) -> None:
    array = new_array(tmp_path / "small", 3)
    array[:] = 7
    assert np.fromfile(tmp_path / "small", np.int64).tolist() == [7, 7, 7] and len(new_array(tmp_path / "none", 0)) == 1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            new_array(tmp_path / "large", 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
