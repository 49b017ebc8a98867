"""Contents by ids: those that are wanted or all, in the corpus's order, refused ones with a reason; kept on disk."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.corpus.content_table import ContentTable, id_hash, positions_of, read_contents, repeated_ids
from mme5core.errors import WorkFailed
from mme5core.readers import ReadOptions
from mme5core.types import Content, Rejected
from tests.core.contents import picture


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def corpus(tmp_path: Path) -> list[Path]:
    """Two shards; the second brings an instruction, a picture beside it, an empty row and an id that was there."""
    (tmp_path / "a.png").write_bytes(png(1))
    rows = [
        [{"id": "a", "text": "one"}, {"id": "b", "text": "two", "image": "a.png"}],
        [{"id": "c", "text": "one", "instruction": "Find:"}, {"id": "d", "text": " "}, {"id": "a", "text": "again"}],
    ]
    files = []
    for number, of_shard in enumerate(rows):
        files.append(tmp_path / f"{number}.jsonl")
        files[-1].write_text("\n".join(map(json.dumps, of_shard)))
    return files


def read(
    corpus: list[Path], folder: Path, *, wanted: list[str] | None = None, limit: int | None = None
) -> tuple[ContentTable, list[Rejected], int]:
    ids = None if wanted is None else np.unique(np.array([id_hash(one) for one in wanted], np.uint64))
    names = [file.name for file in corpus]
    return read_contents(corpus, names, folder, options=ReadOptions(), wanted=ids, limit=limit)


def test_all_rows_come_in_their_order_with_their_instructions_and_pictures(corpus: list[Path], tmp_path: Path) -> None:
    table, refused, num_read = read(corpus, tmp_path / "work")
    assert table.ids().to_pylist() == ["a", "b", "c", "a"] and num_read == 5
    assert [(row.id, row.reason) for row in refused] == [("d", "empty_row")]
    assert table.content(1) == Content("two", png(1)) and table.instruction_of(2) == "Find:"
    keys = table.keys()
    assert keys[0] == keys[2] != keys[1] and len(keys[0]) == 8
    assert repeated_ids(table.ids()).tolist() == [False, False, False, True]


def test_only_wanted_rows_are_kept_and_refused(corpus: list[Path], tmp_path: Path) -> None:
    table, refused, _ = read(corpus, tmp_path / "work", wanted=["b", "gone"])
    assert table.ids().to_pylist() == ["b"] and not refused
    assert positions_of(pa.array(["b", "gone", None]), table.ids()).tolist() == [0, -1, -1]
    nothing, _, _ = read(corpus, tmp_path / "nothing", wanted=[])
    assert len(nothing) == 0 and nothing.keys() == []


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, ["a"]), (2, ["a", "b"]), (3, ["a", "b", "c"]), (99, ["a", "b", "c", "a"])]
)
def test_a_limit_is_of_all_shards_together(limit: int, expected: list[str], corpus: list[Path], tmp_path: Path) -> None:
    table, _, num_read = read(corpus, tmp_path / "work", limit=limit)
    assert table.ids().to_pylist() == list(expected) and num_read == min(limit, 5)


def test_a_shard_that_breaks_off_is_no_silent_loss(corpus: list[Path], tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["x"], "text": ["x"]}), tmp_path / "2.parquet")
    whole = (tmp_path / "2.parquet").read_bytes()
    (tmp_path / "2.parquet").write_bytes(whole[:-20])
    corpus.append(tmp_path / "2.parquet")
    _, refused, _ = read(corpus, tmp_path / "all")
    assert "broken_shard" in {row.reason for row in refused}
    with pytest.raises(WorkFailed, match=r"2\.parquet cannot be read to its end"):
        read(corpus, tmp_path / "wanted", wanted=["x"])
    (tmp_path / "2.parquet").write_bytes(whole)  # its server is back
    table, _, _ = read(corpus, tmp_path / "wanted", wanted=["x"])
    assert table.ids().to_pylist() == ["x"]


def test_what_was_read_is_read_once(corpus: list[Path], tmp_path: Path) -> None:
    read(corpus, tmp_path / "work")
    for file in corpus:
        file.unlink()
    table, refused, num_read = read(corpus, tmp_path / "work")
    assert (len(table), len(refused), num_read) == (4, 1, 5)
