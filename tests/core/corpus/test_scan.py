"""The first pass over a corpus, without Ray: rows and their places, bad ones with reasons, ids that stand twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.corpus import index as index_module
from mme5core.corpus.index import INDEX, Index
from mme5core.corpus.picture_filters import FilterSettings, PictureKey
from mme5core.corpus.scan import ScanShard, count_usable, find_duplicates, scan
from mme5core.errors import InputError, WorkFailed
from mme5core.images import BadImage, to_jpeg
from mme5core.readers import AS_IT_IS, CorpusRow, ReadOptions
from mme5core.readers.shards import of_one_side
from mme5core.tables import shards_of
from mme5core.types import Rejected

ANY_PICTURE = PictureKey(FilterSettings())


def row(row_id: str, reason: str | None = None) -> dict[str, Any]:
    key = None if reason else hashlib.sha256(row_id.encode()).digest()[:16]
    return {"id": row_id, "id_key": key, "key": key, "offset": 0, "num_bytes": 1, "reason": reason}


def index_of(folder: Path, *shards: list[dict[str, Any]]) -> Index:
    """An index as the tasks leave it, one list of rows for each shard."""
    for number, rows in enumerate(shards):
        pq.write_table(pa.Table.from_pylist(rows, INDEX), folder / f"{number:06d}.parquet")
    starts = np.cumsum([0] + [len(rows) for rows in shards])
    find_duplicates(folder, starts)
    return Index([Path(f"{n}.parquet") for n in range(len(shards))], folder, starts, count_usable(folder, starts))


def usable_ids(index: Index) -> list[str]:
    return [row_id for _, table in index.tables(["id"], usable=True) for row_id in table["id"].to_pylist()]


def jpeg(color: tuple[int, int, int]) -> bytes:
    return to_jpeg(Image.new("RGB", (8, 8), color))


def scan_file(file: Path, *, limit: int | None = None, options: ReadOptions = AS_IT_IS) -> list[dict[str, Any]]:
    folder = file.parent / "index"
    folder.mkdir(exist_ok=True)
    item = {"shard": 5, "path": str(file), "label": ""}
    *counts, last = ScanShard(folder, ANY_PICTURE, limit, options)(item)
    found = pq.read_table(folder / "000005.parquet")
    assert found.schema.equals(INDEX) and found.num_rows == sum(count["rows"] for count in counts)
    assert last == {"shard": 5, "total": found.num_rows}
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def test_rows_without_ids_in_files_of_one_name_are_all_kept(tmp_path: Path) -> None:
    ids = []
    for label in ("a/x.jsonl", "b/x.jsonl"):
        (tmp_path / label).parent.mkdir()
        (tmp_path / label).write_text('{"text": "same place"}\n')
        item = {"shard": 0, "path": str(tmp_path / label), "label": label}
        list(ScanShard(tmp_path, lambda row: b"0" * 16)(item))
        ids += pq.read_table(tmp_path / "000000.parquet")["id"].to_pylist()
    assert ids == ["a/x.jsonl:0", "b/x.jsonl:0"]


def test_later_rows_of_an_id_are_refused_and_the_first_is_kept(tmp_path: Path) -> None:
    index = index_of(tmp_path, [row("b"), row("a"), row("b")], [], [row("c"), row("b"), row("a")])
    assert usable_ids(index) == ["b", "a", "c"]
    assert [(r.id, r.reason) for r in index.refused()] == [(i, "duplicate_id") for i in ("b", "b", "a")]
    assert [numbers.tolist() for numbers, _ in index.tables(["id"], usable=True)] == [[0, 1], [3]]
    assert len(index) == 6 and index.num_usable == 3


def test_a_refused_row_takes_nothing_from_a_good_one_of_its_id(tmp_path: Path) -> None:
    rows = [row("a", "failed_to_download"), row("a"), row("b"), row("b", "broken_image"), row("a")]
    index = index_of(tmp_path, rows)
    assert usable_ids(index) == ["a", "b"]
    assert [(r.id, r.reason) for r in index.refused()] == [
        ("a", "failed_to_download"),
        ("b", "broken_image"),
        ("a", "duplicate_id"),
    ]


def test_two_refused_rows_of_an_id_keep_their_own_reasons(tmp_path: Path) -> None:
    index = index_of(tmp_path, [row("a", "broken_image"), row("a", "empty_row")])
    assert [r.reason for r in index.refused()] == ["broken_image", "empty_row"] and not usable_ids(index)


def test_files_of_which_not_all_could_be_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index_of(tmp_path, [row("a"), row("x.tar", "broken_shard") | {"detail": "ends at byte 7"}], [row("b", "empty_row")])
    assert capsys.readouterr().err == "x.tar: broken_shard, ends at byte 7\n"


def test_every_row_of_a_shard_is_recorded_with_its_place_and_bad_ones_with_their_reason(tmp_path: Path) -> None:
    red, blue = jpeg((255, 0, 0)), jpeg((0, 0, 255))
    pictures = [{"bytes": data} for data in (red, b"no picture", red[: len(red) // 2], blue)]
    table = pa.table({"id": ["r", "x", "half", "b"], "image": pictures})
    pq.write_table(table, tmp_path / "corpus.parquet")
    rows = scan_file(tmp_path / "corpus.parquet")
    assert [r["id"] for r in rows] == ["r", "x", "half", "b"]
    assert [r["reason"] for r in rows] == [None, "not_an_image", "broken_image", None]
    assert rows[0]["key"] == hashlib.sha256(red).digest()[:16] and rows[3]["key"] == hashlib.sha256(blue).digest()[:16]
    assert rows[1]["key"] is None and rows[0]["num_bytes"] == len(red)


def test_a_limit_ends_the_scan_after_that_many_rows(tmp_path: Path) -> None:
    table = pa.table({"id": list("abcde"), "image": [{"bytes": jpeg((n, 0, 0))} for n in range(5)]})
    pq.write_table(table, tmp_path / "corpus.parquet")
    assert [r["id"] for r in scan_file(tmp_path / "corpus.parquet", limit=3)] == ["a", "b", "c"]
    assert len(scan_file(tmp_path / "corpus.parquet", limit=9)) == 5


def test_equal_pictures_have_equal_keys_and_a_row_without_picture_has_none() -> None:
    red, blue = jpeg((255, 0, 0)), jpeg((0, 0, 255))
    assert ANY_PICTURE(CorpusRow("a", image=red)) == ANY_PICTURE(CorpusRow("b", text="other", image=red))
    assert ANY_PICTURE(CorpusRow("a", image=red)) != ANY_PICTURE(CorpusRow("a", image=blue))
    with pytest.raises(BadImage, match="no_picture"):
        ANY_PICTURE(CorpusRow("a", text="words"))


def test_refused_rows_become_values_with_reason_and_detail(tmp_path: Path) -> None:
    index = index_of(tmp_path, [row("a", "broken_image") | {"detail": "cut off"}, row("b")])
    assert list(index.refused()) == [Rejected("a", "broken_image", "cut off")]


def test_an_input_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone"):
        shards_of([str(tmp_path / "gone")])


@pytest.mark.parametrize(
    ("side", "names"),
    [
        ("both", ["corpus.jsonl", "queries.jsonl", "more.jsonl"]),
        ("query", ["queries.jsonl", "more.jsonl"]),
        ("target", ["corpus.jsonl", "more.jsonl"]),
    ],
)
def test_of_a_beir_folder_one_side_is_taken(side: str, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    shards = [Path("beir") / name for name in ("corpus.jsonl", "queries.jsonl", "more.jsonl")]
    other = Path("elsewhere/corpus.jsonl")  # alone, and so not a side of anything
    assert [shard.name for shard in of_one_side([*shards, other], side)] == [*names, "corpus.jsonl"]
    assert ("read as one corpus" in capsys.readouterr().err) == (side == "both")


def test_a_range_of_rows_opens_the_indexes_of_its_shards_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_of(tmp_path, *([row(f"{shard}-{n}") for n in range(3)] for shard in range(4)))
    opened, rows_of = [], index_module.rows_of

    def record(folder: Path, shard: int, *more: Any) -> Any:
        opened.append(shard)
        return rows_of(folder, shard, *more)

    monkeypatch.setattr(index_module, "rows_of", record)
    tables = list(index.tables(["id"], within=(4, 7)))
    assert opened == [1, 2]
    assert [row_id for _, table in tables for row_id in table["id"].to_pylist() if row_id in ("1-1", "1-2", "2-0")]
    assert list(index.tables(["id"], within=(12, 12))) == [] or opened[2:] == [3]


def test_an_index_that_an_earlier_version_has_begun_is_refused_and_our_own_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "x"}')
    task = ScanShard(tmp_path / "out" / "_work" / "index", lambda row: b"k" * 16)
    task.folder.mkdir(parents=True)
    shards = [tmp_path / "a.jsonl"]
    for _ in range(2):
        assert len(scan(shards, ["a.jsonl"], task, job="test")) == 1
    (task.folder / "version.json").unlink()
    with pytest.raises(WorkFailed, match=r"out was begun by an earlier version.*another output"):
        scan(shards, ["a.jsonl"], task, job="test")


def test_a_key_that_cannot_be_made_refuses_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}')

    def key_of(row: CorpusRow) -> bytes:
        if row.id == "a":
            raise RecursionError("too deep")
        return b"k" * 16

    index = scan([tmp_path / "a.jsonl"], ["a.jsonl"], ScanShard(tmp_path / "index", key_of), job="test")
    assert [(row.id, row.reason) for row in index.refused()] == [("a", "unreadable_row")] and index.num_usable == 1
