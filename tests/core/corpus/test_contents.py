"""Rows and their distinct contents, and vectors found again by content, whatever file they were written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mme5core.corpus import contents, vector_log
from mme5core.corpus.contents import Contents, number_contents
from mme5core.corpus.vector_log import REFUSED, VectorPlaces, append, vector_schema
from tests.core.corpus.test_scan import index_of, row

WIDTH = 3


def numbered(folder: Path, *shards: str) -> Contents:
    """Of shards whose rows' contents are letters; "-" is a refused row."""
    count = iter(range(1000))
    rows = [
        [row(f"id{next(count)}", "empty_row" if c == "-" else None) | {"key": c.encode() * 16} for c in shard]
        for shard in shards
    ]
    return number_contents(index_of(folder, *rows), folder)


@pytest.mark.parametrize("rows_at_once", [1 << 20, 2, 1])
def test_contents_are_numbered_by_their_first_rows(
    rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "ROWS_AT_ONCE", rows_at_once)
    found = numbered(tmp_path, "ab-ab", "", "ca-dd", "b")
    assert found.of(0, 11).tolist() == [0, 1, -1, 0, 1, 2, 0, -1, 3, 3, 1]
    assert found.of(5, 2).tolist() == [2, 0]
    assert found.starts.tolist() == [0, 2, 2, 4, 4] and len(found) == 4


def test_the_numbers_of_an_earlier_run_are_taken(tmp_path: Path) -> None:
    before = numbered(tmp_path, "ab")
    np.array([1, 0]).tofile(tmp_path / "contents")
    again = number_contents(index_of(tmp_path, [row("x"), row("y")]), tmp_path)
    assert again.of(0, 2).tolist() == [1, 0] and again.starts.tolist() == before.starts.tolist()


def write(folder: Path, numbers: list[int], reasons: dict[int, str] | None = None) -> str:
    """A file of vectors [n, n + 1, n + 2] of the contents n; its name."""
    records = [
        {"content": n, "reason": reasons[n], "detail": "cut off"}
        if reasons and n in reasons
        else {"content": n, "embedding": [n, n + 1, n + 2]}
        for n in numbers
    ]
    return append(folder, pa.Table.from_pylist(records, vector_schema(WIDTH)))


def test_vectors_are_found_by_content_across_files_and_refused_ones_keep_their_reason(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    names = [
        write(tmp_path / "rows", [4, 0, 7], {0: "broken_image"}),
        write(tmp_path / "rows", []),
        write(tmp_path / "rows", [2, 5]),
        write(tmp_path / "rows", [5, 1, 2], {2: "broken_image"}),  # a task that Ray tried again
    ]
    for order in (names, names[::-1]):
        reported = VectorPlaces(tmp_path / "none", WIDTH, 9, tmp_path / "places")
        reported.log.folder = tmp_path / "rows"
        for name in order:
            reported.add(name)
        places, log = reported.places, reported.log
        assert [n for n in range(9) if places[n] < 0] == [3, 6, 8] and reported.num_done == 6
        # What is done keeps its place during a run, since tasks may be reading it; the next run takes the vector.
        refused = [n for n in range(9) if places[n] >= REFUSED]
        assert refused == ([0] if order is names else [0, 2])
        if order is not names:
            reported = VectorPlaces(tmp_path / "rows", WIDTH, 9, tmp_path / "places")
            places, log = reported.places, reported.log
            assert [n for n in range(9) if places[n] >= REFUSED] == [0]
        assert log.refusal(int(places[0])) == ("broken_image", "cut off")
        wanted = [7, 2, 5, 4, 1, 2]
        assert log.vectors(places[wanted])[:, 0].tolist() == wanted
        assert log.vectors(places[:0]).shape == (0, WIDTH)
        assert sorted(v for batch in log.batches() for v in batch[:, 0].tolist()) == [1, 2, 4, 5, 5, 7]


def test_what_an_earlier_run_left_is_taken_and_the_prefix_grows_with_what_comes(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    write(rows, [1, 0])
    write(rows, [4])
    places = VectorPlaces(rows, WIDTH, 6, tmp_path / "places")
    assert (places.num_done, places.prefix) == (3, 2)
    places.add(write(rows, [3]))
    assert (places.num_done, places.prefix) == (4, 2)
    places.add(write(rows, [2], {2: "broken_image"}))
    assert (places.num_done, places.prefix) == (5, 5)
    places.add(write(rows, [5]))
    assert (places.num_done, places.prefix) == (6, 6)


def test_more_files_than_are_kept_open_are_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_log, "OPEN_FILES", 2)
    (tmp_path / "rows").mkdir()
    for n in range(7):
        write(tmp_path / "rows", [n])
    places = VectorPlaces(tmp_path / "rows", WIDTH, 7, tmp_path / "places")
    assert places.log.vectors(places.places[::-1])[:, 0].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert len(places.log._open) <= 2
