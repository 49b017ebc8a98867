"""The first pass over a corpus, without Ray: rows and their places, bad ones with reasons, ids that stand twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.images import BadImage, to_jpeg
from mme5core.readers import CorpusRow
from mme5core.types import Rejected
from rayjobs.config import ConfigError
from rayjobs.scan import INDEX, Index, _mark_duplicate_ids, _scan_shard, picture_key, shards_of


def row(row_id: str, reason: str | None = None) -> dict[str, Any]:
    key = None if reason else hashlib.sha256(row_id.encode()).digest()[:16]
    return {"id": row_id, "key": key, "shard": 0, "position": 0, "offset": 0, "num_bytes": 1, "reason": reason}


def marked(*rows: dict[str, Any]) -> Index:
    return Index([], _mark_duplicate_ids(pa.Table.from_pylist(list(rows), INDEX)))


def jpeg(color: tuple[int, int, int]) -> bytes:
    return to_jpeg(Image.new("RGB", (8, 8), color))


def scan_file(file: Path, *, limit: int | None = None) -> list[dict[str, Any]]:
    batch = pa.table({"shard": [5], "path": [str(file)]})
    found = pa.concat_tables(_scan_shard(batch, key_of=picture_key, limit=limit))
    assert found.schema.equals(INDEX)
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def test_rows_without_ids_in_files_of_one_name_are_all_kept(tmp_path: Path) -> None:
    ids = []
    for label in ("a/x.jsonl", "b/x.jsonl"):
        (tmp_path / label).parent.mkdir()
        (tmp_path / label).write_text('{"text": "same place"}\n')
        batch = pa.table({"shard": [0], "path": [str(tmp_path / label)], "label": [label]})
        (found,) = _scan_shard(batch, key_of=lambda row: b"0" * 16, limit=None)
        ids += found["id"].to_pylist()
    assert ids == ["a/x.jsonl:0", "b/x.jsonl:0"]


def test_later_rows_of_an_id_are_refused_and_the_first_is_kept() -> None:
    index = marked(row("b"), row("a"), row("b"), row("c"), row("b"), row("a"))
    assert index.usable()["id"].to_pylist() == ["b", "a", "c"]
    assert [(r.id, r.reason) for r in index.refused()] == [(i, "duplicate_id") for i in ("b", "b", "a")]
    assert index.table["key"].null_count == 3 and index.usable()["key"].null_count == 0
    assert len(index) == len(index.usable()) + len(index.refused()) == 6


def test_a_refused_row_takes_nothing_from_a_good_one_of_its_id() -> None:
    index = marked(row("a", "failed_to_download"), row("a"), row("b"), row("b", "broken_image"), row("a"))
    assert index.usable()["id"].to_pylist() == ["a", "b"]
    assert [(r.id, r.reason) for r in index.refused()] == [
        ("a", "failed_to_download"),
        ("b", "broken_image"),
        ("a", "duplicate_id"),
    ]


def test_two_refused_rows_of_an_id_keep_their_own_reasons() -> None:
    index = marked(row("a", "broken_image"), row("a", "empty_row"))
    assert [r.reason for r in index.refused()] == ["broken_image", "empty_row"] and len(index.usable()) == 0


def test_distinct_ids_stay_as_they_are() -> None:
    table = pa.Table.from_pylist([row("a"), row("b", "empty_row"), row("c")], INDEX)
    assert _mark_duplicate_ids(table).equals(table)


def test_every_row_of_a_shard_is_recorded_with_its_place_and_bad_ones_with_their_reason(tmp_path: Path) -> None:
    red, blue = jpeg((255, 0, 0)), jpeg((0, 0, 255))
    pictures = [{"bytes": data} for data in (red, b"no picture", red[: len(red) // 2], blue)]
    table = pa.table({"id": ["r", "x", "half", "b"], "image": pictures})
    pq.write_table(table, tmp_path / "corpus.parquet")
    rows = scan_file(tmp_path / "corpus.parquet")
    assert [(r["id"], r["position"], r["shard"]) for r in rows] == [
        ("r", 0, 5),
        ("x", 1, 5),
        ("half", 2, 5),
        ("b", 3, 5),
    ]
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
    assert picture_key(CorpusRow("a", image=red)) == picture_key(CorpusRow("b", text="other", image=red))
    assert picture_key(CorpusRow("a", image=red)) != picture_key(CorpusRow("a", image=blue))
    with pytest.raises(BadImage, match="no_picture"):
        picture_key(CorpusRow("a", text="words"))


def test_refused_rows_become_values_with_reason_and_detail() -> None:
    index = Index([], pa.Table.from_pylist([row("a", "broken_image") | {"detail": "cut off"}, row("b")], INDEX))
    assert index.refused() == [Rejected("a", "broken_image", "cut off")]


def test_an_input_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone"):
        shards_of([str(tmp_path / "gone")])
