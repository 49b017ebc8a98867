"""Tests of what an attack on the readers has shown: long headers, odd names, deep columns, letters that are no text."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.corpus.source_columns import SourceColumns
from mme5core.images import BadImage, load_rgb
from mme5core.readers import ReadOptions, find_shards, read_rows
from mme5core.readers.corpus_row import refuse
from mme5core.readers.shards import labels
from mme5core.web import HostRefused, HostRule
from tests.core.test_images import encoded, noise


def test_a_long_extension_of_a_header_is_not_read(tmp_path: Path) -> None:
    digits = tarfile.TarInfo("x")
    digits.type, digits.size = tarfile.XHDTYPE, 2_000_000
    data = b"9" * digits.size
    (tmp_path / "a.tar").write_bytes(digits.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) + bytes(1024))
    begun = time.monotonic()
    (row,) = read_rows(tmp_path / "a.tar")
    assert row.refused is not None and "2,000,000 bytes" in row.refused.detail and time.monotonic() - begun < 2


def test_a_member_without_a_name_costs_no_other(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in (".", "a.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
    assert [(row.id, row.refused and row.refused.reason) for row in read_rows(tmp_path / "a.tar")] == [
        (".", "unknown_suffix"),
        ("a", None),
    ]


def test_a_jpeg_of_thousands_of_scans_is_not_decoded() -> None:
    whole = encoded(noise(64, 64), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(BadImage, match="scans"):
        load_rgb(whole[:-2] + scan * 1000 + whole[-2:])
    assert load_rgb(whole).size == (64, 64)


def test_deep_and_infinite_entries_of_a_column_become_json(tmp_path: Path) -> None:
    deep: list[object] = []
    for _ in range(600):
        deep = [deep]
    source = pa.chunked_array([[json.dumps({"m": deep}), json.dumps({"m": [float("nan"), {"a": float("inf")}]})]])
    column = SourceColumns({"m": "json"}).arrays(source)["m"].to_pylist()
    assert json.loads(column[0]) == deep and column[1] == '[null, {"a": null}]'


def test_a_lone_surrogate_in_a_title_or_an_address_refuses_its_row(tmp_path: Path) -> None:
    lines = ['{"_id": "1", "title": "\\ud800", "text": "a"}', '{"_id": "2", "title": 7, "text": null}']
    lines += ['{"id": "3", "image": "http://e.org/\\ud800.jpg"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    first, second, third = read_rows(tmp_path / "a.jsonl", ReadOptions(fetch=False))
    assert first.refused is not None and first.refused.reason == "text_not_unicode"
    assert second.text == "7"
    assert third.refused is not None and third.refused.reason == "missing_image"


def test_a_cell_that_is_no_utf_8_refuses_its_row_alone(tmp_path: Path) -> None:
    text = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": text}), tmp_path / "a.parquet")
    rows = list(read_rows(tmp_path / "a.parquet"))
    assert [(row.id, row.refused.reason if row.refused else row.text) for row in rows] == [
        ("1", "a"),
        ("2", "text_not_unicode"),
        ("3", "c"),
    ]


def test_candidates_of_mmeb_that_are_one_text_are_one_candidate(tmp_path: Path) -> None:
    columns = {"qry_text": ["q"], "qry_img_path": [""], "tgt_text": ["abc"], "tgt_img_path": [""]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert [row.text for row in read_rows(tmp_path / "a.parquet")] == ["q", "abc"]


def test_labels_are_unique_also_where_longer_ones_meet_others() -> None:
    shards = [Path("/a/x.jsonl"), Path("/b/x.jsonl"), Path("/c/a/x.jsonl")]
    own = labels(shards, ["/a/*", "/b/*", "/c/*"])
    assert len(set(own)) == 3 and own[2] == "c/a/x.jsonl"
    marks = labels([Path("/a/what?1.jsonl"), Path("/a/what?2.jsonl")], ["/a/*"])
    assert marks == ["what?1.jsonl", "what?2.jsonl"]


def test_what_a_pattern_passes_over_is_said(tmp_path: Path) -> None:
    for name in ("x.jsonl", "y.csv", "z.jsonl.gz", "q[1]/a.jsonl", "q1/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    notes: list[str] = []
    find_shards([str(tmp_path / "*")], note=notes.append)
    assert len(notes) == 1 and "2 other files are not read: y.csv, z.jsonl.gz" in notes[0]
    assert [shard.name for shard in find_shards([str(tmp_path / "q[1]")])] == ["a.jsonl"]


def test_a_detail_is_one_short_line_and_a_reason_a_name() -> None:
    row = refuse("a", "an odd\nstatus", "x\n" * 5000)
    assert row.refused is not None and row.refused.reason == "refused_by_its_status"
    assert len(row.refused.detail) < 420 and "\n" not in row.refused.detail


@pytest.mark.parametrize(
    "address", ["64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "fec0::1", "2130706433", "0x7f.1", "017700000001"]
)
def test_every_way_to_write_a_private_address_is_refused(address: str) -> None:
    with pytest.raises(HostRefused):
        HostRule().check(address)
    HostRule().check("2606:4700:4700::1111")
    HostRule().check("1.1.1.1")
