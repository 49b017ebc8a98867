"""Tests of the JSON lines reader: an object a line, and every bad line with its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mme5core.readers import CorpusRow, jsonl, read_rows


def rows_of(tmp_path: Path, *lines: bytes, end: bytes = b"\n") -> list[CorpusRow]:
    (tmp_path / "a.jsonl").write_bytes(end.join(lines))
    return list(read_rows(tmp_path / "a.jsonl"))


def reasons(rows: list[CorpusRow]) -> list[tuple[str, str | None]]:
    return [(row.id, row.refused.reason if row.refused else None) for row in rows]


def test_lines_are_read_by_the_usual_names_each_line_by_its_own(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, b'{"id": "a", "text": "one"}', b'{"docid": 2, "TEXT": "two", "instruction": "Find:"}')
    assert rows == [CorpusRow("a", "one", offset=0), CorpusRow("2", "two", None, "Find:", offset=1)]


@pytest.mark.parametrize("text", ["una gatta è qui", "猫\u2028猫", 'a "quote"', "  spaces  ", "\U0001f63a"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_texts_arrive_verbatim_in_every_script(tmp_path: Path, text: str, ascii_only: bool) -> None:
    line = json.dumps({"text": text}, ensure_ascii=ascii_only).encode()
    assert [row.text for row in rows_of(tmp_path, line, line)] == [text, text]


def test_a_picture_is_a_path_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"png")
    rows = rows_of(tmp_path, b'{"id": "a", "image": "p.png"}', b'{"id": "b", "image": "gone.png"}')
    assert rows[0].image == b"png"
    assert reasons(rows) == [("a", None), ("b", "missing_image")]


def test_blank_lines_are_passed_over_and_positions_stay_line_numbers_from_0(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, b'{"text": "a"}', b"", b"  ", b'{"text": "b"}', b"")
    assert [row.id for row in rows] == ["a.jsonl:0", "a.jsonl:3"]


def test_windows_line_ends_and_a_last_line_without_one_are_read(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, b'{"text": "a"}', b'{"text": "b"}', end=b"\r\n")
    assert [row.text for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "half', "not_json"),
        (b'{"text": "\xff"}', "not_json"),
        (b"[1, 2]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"{}", "empty_row"),
        (b'{"text": ""}', "empty_row"),
        (b'{"text": ["a"]}', "text_not_a_string"),
        (b'{"text": "a", "instruction": 5}', "instruction_not_a_string"),
        (b'{"image": 5}', "not_an_image"),
        (rb'{"image": "nul\u0000inside.jpg"}', "missing_image"),
    ],
)
def test_a_bad_line_is_refused_between_its_good_neighbours(tmp_path: Path, line: bytes, reason: str) -> None:
    rows = rows_of(tmp_path, b'{"text": "a"}', line, b'{"text": "b"}')
    assert reasons(rows) == [("a.jsonl:0", None), ("a.jsonl:1", reason), ("a.jsonl:2", None)]


def test_a_text_with_half_a_character_is_refused(tmp_path: Path) -> None:
    # JSON can escape half of a surrogate pair; such a string fits into no UTF-8 file.
    rows = rows_of(tmp_path, rb'{"text": "\ud83d\ude3a"}', rb'{"text": "\ud83d"}')
    assert rows[0].text == "\U0001f63a"
    assert rows[1].refused is not None


def test_an_empty_file_gives_no_rows(tmp_path: Path) -> None:
    assert rows_of(tmp_path) == []


def test_the_title_of_a_beir_corpus_is_the_beginning_of_its_text(tmp_path: Path) -> None:
    lines = [
        '{"_id": "d1", "title": "Cats", "text": "They sleep.", "metadata": {}}',
        '{"_id": "d2", "title": "", "text": "No title."}',
        '{"id": "d3", "title": "Not BEIR", "text": "Its own text."}',
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    assert [(row.id, row.text) for row in read_rows(tmp_path / "corpus.jsonl")] == [
        ("d1", "Cats They sleep."),
        ("d2", "No title."),
        ("d3", "Its own text."),
    ]


def test_a_mark_of_utf_8_is_passed_over_and_another_encoding_refuses_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    text = '{"text": "Straße"}\n{"text": "b"}\n'
    file.write_bytes(text.encode("utf-8-sig"))
    assert [row.text for row in read_rows(file)] == ["Straße", "b"]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        file.write_bytes(text.encode(encoding))
        (row,) = read_rows(file)
        assert row.refused is not None and (row.id, row.refused.reason) == ("a.jsonl", "broken_shard")
    file.write_bytes(text.encode("latin-1"))
    bad, good = read_rows(file)
    assert bad.refused is not None and bad.refused.detail.startswith("not UTF-8") and good.text == "b"


def test_deep_nesting_and_a_key_named_twice_cost_their_line_alone(tmp_path: Path) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    rows = rows_of(
        tmp_path,
        b'{"text": "a"}',
        b'{"text": "b", "meta": ' + deep + b"}",
        b'{"text": "c", "text": "d"}',
        b'{"text": "e"}',
    )
    assert [row.refused.reason if row.refused else row.text for row in rows] == ["a", "not_json", "not_json", "e"]


def test_a_line_above_the_limit_is_refused_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 20)
    rows = rows_of(tmp_path, b'{"text": "' + b"x" * 70 + b'"}', b'{"text": "ok"}')
    assert [row.refused.reason if row.refused else row.text for row in rows] == ["not_json", "ok"]
    assert [row.id for row in rows] == ["a.jsonl:0", "a.jsonl:1"]


def test_metadata_of_an_image_folder_name_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"pixels")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a cat"}')
    (row,) = read_rows(tmp_path / "metadata.jsonl")
    assert (row.text, row.image) == ("a cat", b"pixels")
