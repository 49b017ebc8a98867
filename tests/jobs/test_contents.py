"""Rows and their distinct contents, and vectors found again by content, whatever file they were written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayjobs import contents
from rayjobs.contents import VectorLog, append, number_contents, vector_schema
from tests.jobs.test_scan import index_of, row

WIDTH = 3


def numbered(folder: Path, *shards: str) -> contents.Contents:
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


def write(folder: Path, numbers: list[int], reasons: dict[int, str] | None = None) -> None:
    """A file of vectors [n, n + 1, n + 2] of the contents n."""
    records = [
        {"content": n, "reason": reasons[n], "detail": "cut off"}
        if reasons and n in reasons
        else {"content": n, "embedding": [n, n + 1, n + 2]}
        for n in numbers
    ]
    append(folder, pa.Table.from_pylist(records, vector_schema(WIDTH)))


def test_vectors_are_found_by_content_across_files_and_refused_ones_keep_their_reason(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows", [4, 0, 7], {0: "broken_image"})
    write(tmp_path / "rows", [])
    write(tmp_path / "rows", [2, 5])
    write(tmp_path / "rows", [5, 1, 2], {2: "broken_image"})  # a task that Ray tried again
    log = VectorLog(tmp_path / "rows", WIDTH)
    places = log.locate(9, tmp_path / "places")
    assert [n for n in range(9) if places[n] < 0] == [3, 6, 8]
    assert [n for n in range(9) if places[n] >= VectorLog.REFUSED] == [0]
    assert log.refusal(int(places[0])) == ("broken_image", "cut off")
    wanted = [7, 2, 5, 4, 1, 2]
    assert log.vectors(places[wanted])[:, 0].tolist() == wanted
    assert log.vectors(places[:0]).shape == (0, WIDTH)
    assert sorted(v for batch in log.batches() for v in batch[:, 0].tolist()) == [1, 2, 4, 5, 5, 7]


def test_more_files_than_are_kept_open_are_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "OPEN_FILES", 2)
    (tmp_path / "rows").mkdir()
    for n in range(7):
        write(tmp_path / "rows", [n])
    log = VectorLog(tmp_path / "rows", WIDTH)
    places = log.locate(7, tmp_path / "places")
    assert log.vectors(places[::-1])[:, 0].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert len(log._open) <= 2


def test_the_digest_changes_with_the_files(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows", [0])
    before = VectorLog(tmp_path / "rows", WIDTH).digest()
    assert before == VectorLog(tmp_path / "rows", WIDTH).digest()
    write(tmp_path / "rows", [1])
    assert VectorLog(tmp_path / "rows", WIDTH).digest() != before
