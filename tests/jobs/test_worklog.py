"""The log of finished rows: durable by batch, found by key, taken in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from rayjobs.worklog import WorkLog, append

SCHEMA = pa.schema([("key", pa.string()), ("status", pa.string()), ("value", pa.int64())])


def write(folder: Path, *rows: tuple[str, str, int]) -> None:
    append(folder, pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA))


def rows_at(log: WorkLog, places: np.ndarray, *, rows_per_table: int = 10_000) -> list[tuple[str, int]]:
    found = list(log.take(places, rows_per_table=rows_per_table))
    assert all(table.num_rows <= rows_per_table for table in found)
    return [(row["key"], row["value"]) for table in found for row in table.to_pylist()]


def test_every_row_is_found_in_whatever_file_it_lies(tmp_path: Path) -> None:
    write(tmp_path, ("a", "kept", 1), ("b", "kept", 2))
    write(tmp_path, ("c", "kept", 3))
    write(tmp_path, ("d", "kept", 4), ("e", "kept", 5), ("f", "kept", 6))
    log = WorkLog(tmp_path, SCHEMA)
    assert len(log) == 6 and sorted(log.keys.to_pylist()) == list("abcdef")
    places = log.find(pa.array(["e", "missing", "a", "c"]))
    assert places[1] == -1 and (places[[0, 2, 3]] >= 0).all()
    assert [log.keys[int(place)].as_py() for place in places[[0, 2, 3]]] == ["e", "a", "c"]


def test_rows_are_taken_in_the_order_given_across_files_and_tables(tmp_path: Path) -> None:
    # Keys alternate between the files, so that any grouping by file would show.
    write(tmp_path, *((f"k{n}", "kept", n) for n in range(0, 12, 2)))
    write(tmp_path, *((f"k{n}", "kept", n) for n in range(1, 12, 2)))
    log = WorkLog(tmp_path, SCHEMA)
    order = [7, 2, 11, 4, 4, 0, 9, 1, 6, 3]
    places = log.find(pa.array([f"k{n}" for n in order]))
    expected = [(f"k{n}", n) for n in order]
    assert rows_at(log, places) == expected
    assert rows_at(log, places, rows_per_table=3) == expected


def test_a_key_written_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path, ("a", "kept", 1), ("a", "kept", 2), ("b", "kept", 3))
    write(tmp_path, ("b", "kept", 4), ("c", "kept", 5))
    log = WorkLog(tmp_path, SCHEMA)
    places = log.find(pa.array(["a", "b", "c"]))
    keys = [key for key, _ in rows_at(log, places)]
    assert keys == ["a", "b", "c"]
    # Of two in one file it is the first one.
    assert rows_at(log, places)[0] == ("a", 1)


def test_only_rows_among_the_wanted_are_found(tmp_path: Path) -> None:
    write(tmp_path, ("a", "pending", 1), ("b", "pending", 2), ("a", "kept", 3), ("a", "kept", 4), ("c", "kept", 5))
    log = WorkLog(tmp_path, SCHEMA)
    is_answered = np.asarray(log.column("status")) != "pending"
    places = log.find(pa.array(["c", "b", "a"]), among=is_answered)
    assert places.tolist() == [4, -1, 2]
    assert log.find(pa.array(["c", "b", "a"])).tolist() == [4, 1, 0]
    assert log.find(pa.array(["a"]), among=np.zeros(5, dtype=bool)).tolist() == [-1]


def test_an_empty_log_has_no_rows_and_finds_none(tmp_path: Path) -> None:
    log = WorkLog(tmp_path, SCHEMA)
    assert len(log) == 0 and log.column("value").to_pylist() == [] and log.column("value").type == pa.int64()
    assert log.find(pa.array(["a", "b"])).tolist() == [-1, -1]
    assert list(log.take(np.zeros(0, dtype=np.int64))) == []


def test_an_empty_batch_is_an_empty_file_among_others(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, ("a", "kept", 1))
    log = WorkLog(tmp_path, SCHEMA)
    assert rows_at(log, log.find(pa.array(["a"]))) == [("a", 1)]


def test_a_batch_that_was_cut_off_while_it_was_written_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, ("a", "kept", 1))
    (tmp_path / ".0123").write_bytes(b"ARROW1 and then the process was killed")
    assert WorkLog(tmp_path, SCHEMA).keys.to_pylist() == ["a"]
