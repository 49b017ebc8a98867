"""Tests of the Parquet reader: columns by their usual names, and every bad row with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.readers import AS_IT_IS, CorpusRow, ReadOptions, parquet_rows, read_picture, read_rows
from mme5core.readers.picture_at import SUFFIXES_WITH_PICTURES
from mme5core.readers.rows import READERS
from mme5core.readers.shards import SUFFIXES
from mme5core.readers.table import find_column
from mme5core.schemas import IMAGE


def rows_of(tmp_path: Path, columns: dict[str, Any], **options: Any) -> list[CorpusRow]:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", **options)
    return list(read_rows(tmp_path / "a.parquet"))


def reasons(rows: list[CorpusRow]) -> list[tuple[str, str | None]]:
    return [(row.id, row.refused.reason if row.refused else None) for row in rows]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["URL", "TEXT"], "TEXT"),
        (["caption", "text"], "text"),
        (["Caption", "content"], "Caption"),
        (["Text", "TEXT"], "Text"),
        (["textual"], None),
        ([], None),
    ],
)
def test_a_column_is_found_by_our_order_of_names_in_any_case(names: list[str], found: str | None) -> None:
    assert find_column(names, ("text", "caption", "content")) == found


def test_rows_carry_id_text_picture_and_instruction(tmp_path: Path) -> None:
    columns = {"_id": ["a", "b"], "Caption": ["one", ""], "JPG": [None, b"\xff"], "instruction": ["Find:", None]}
    expected = [CorpusRow("a", "one", None, "Find:", offset=0), CorpusRow("b", None, b"\xff", None, offset=1)]
    assert rows_of(tmp_path, columns) == expected


def test_a_number_is_an_id_and_0_is_one_too(tmp_path: Path) -> None:
    assert [row.id for row in rows_of(tmp_path, {"id": [0, 17], "text": ["a", "b"]})] == ["0", "17"]


def test_a_row_without_id_is_named_by_file_and_position(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": ["x", None, ""], "text": ["a", "b", "c"]})
    assert [row.id for row in rows] == ["x", "a.parquet:1", "a.parquet:2"]


def test_positions_count_through_row_groups_and_batches(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"text": [str(number) for number in range(700)]}, row_group_size=300)
    assert [(row.id, row.text) for row in rows] == [(f"a.parquet:{number}", str(number)) for number in range(700)]


def test_a_picture_is_bytes_a_struct_or_a_path_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "p.png").write_bytes(b"png")
    structs = [
        {"bytes": b"jpg", "path": "gone.jpg"},
        {"bytes": None, "path": "pictures/p.png"},
        {"bytes": None, "path": str(tmp_path / "pictures" / "p.png")},
    ]
    found = rows_of(tmp_path, {"image": pa.array(structs, IMAGE)})
    assert [row.image for row in found] == [b"jpg", b"png", b"png"]
    assert rows_of(tmp_path, {"image_path": ["pictures/p.png"]})[0].image == b"png"


def test_a_row_of_nothing_and_a_picture_that_is_gone_are_refused_by_id(tmp_path: Path) -> None:
    columns = {"id": ["a", "b", "c", "d"], "text": ["", "x", None, "y"], "image": [None, "gone.jpg", "", None]}
    expected = [("a", "empty_row"), ("b", "missing_image"), ("c", "empty_row"), ("d", None)]
    assert reasons(rows_of(tmp_path, columns)) == expected


def test_a_path_that_no_file_can_have_is_refused_and_the_next_row_is_read(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": ["a", "b"], "text": ["x", "y"], "image": ["nul\0inside.jpg", None]})
    assert reasons(rows) == [("a", "missing_image"), ("b", None)]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": [5]}, "text_not_a_string"),
        ({"text": [["a", "b"]]}, "text_not_a_string"),
        ({"text": ["a"], "instruction": [1.5]}, "instruction_not_a_string"),
        ({"image": [7]}, "not_an_image"),
    ],
)
def test_a_column_of_another_type_is_refused_row_by_row(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    assert reasons(rows_of(tmp_path, {"id": ["a"]} | columns)) == [("a", reason)]


def test_a_file_without_text_or_picture_is_refused_as_a_whole(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": ["a", "b"], "url": ["u", "v"]})
    assert reasons(rows) == [("a.parquet", "no_content_column")]


def test_a_file_of_no_rows_gives_none(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"text": pa.array([], pa.string())}) == []


@pytest.mark.parametrize("num_bytes", [0, 4, 200])
def test_a_truncated_file_is_one_broken_shard(tmp_path: Path, num_bytes: int) -> None:
    rows_of(tmp_path, {"text": [str(number) for number in range(50)]})
    file = tmp_path / "a.parquet"
    file.write_bytes(file.read_bytes()[:num_bytes])
    assert reasons(list(read_rows(file))) == [("a.parquet", "broken_shard")]


def test_a_text_that_is_not_unicode_is_refused_and_raises_nothing(tmp_path: Path) -> None:
    offsets, data = pa.array([0, 2, 4], pa.int32()).buffers()[1], pa.py_buffer(b"ok\xff\xfe")
    texts = pa.StringArray.from_buffers(2, offsets, data)
    rows = rows_of(tmp_path, {"id": ["a", "b"], "text": texts})
    assert rows[-1].refused is not None


def test_a_format_that_is_not_known_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown format '\.csv'.*'\.jsonl', '\.parquet', '\.tar'"):
        read_rows(tmp_path / "a.csv")


def test_the_files_that_an_input_finds_are_those_that_have_a_reader() -> None:
    assert set(SUFFIXES) == set(READERS) >= set(SUFFIXES_WITH_PICTURES)


def test_a_list_of_pictures_is_a_row_of_several_and_of_one_a_row_of_one(tmp_path: Path) -> None:
    columns = {"id": list("abcd"), "text": ["t"] * 4, "images": [[b"x", b"y"], [b"z"], [], None]}
    rows = rows_of(tmp_path, columns)
    assert [(row.image, row.images, row.pictures) for row in rows] == [
        (None, (b"x", b"y"), (b"x", b"y")),
        (b"z", (), (b"z",)),
        (None, (), ()),
        (None, (), ()),
    ]


def test_pictures_of_a_list_are_paths_and_structs_too_and_one_that_is_not_there_refuses_the_row(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_bytes(b"p")
    structs = [[{"bytes": None, "path": "p.jpg"}, {"bytes": b"q", "path": None}], [{"bytes": b"q", "path": None}]]
    structs[1].append({"bytes": None, "path": None})
    rows = rows_of(tmp_path, {"id": ["a", "b"], "images": structs})
    assert rows[0].images == (b"p", b"q") and rows[1].refused and rows[1].refused.reason == "missing_image"
    assert "picture 1 of 2" in rows[1].refused.detail


def test_a_picture_and_a_list_of_pictures_in_one_row_are_refused(tmp_path: Path) -> None:
    columns = {"id": ["a", "b"], "image": [b"x", None], "images": [[b"y"], [b"y"]]}
    rows = rows_of(tmp_path, columns)
    assert reasons(rows) == [("a", "two_picture_columns"), ("b", None)] and rows[1].image == b"y"


def test_a_single_picture_is_read_again_from_the_column_that_has_it(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": ["a", "b"], "image": [b"x", None], "images": [None, [b"y"]]})
    again = [read_picture(tmp_path / "a.parquet", row.id, row.offset or 0, 1, AS_IT_IS) for row in rows]
    assert again == [row.image for row in rows] == [b"x", b"y"]


def test_what_is_no_list_of_pictures_is_refused(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"id": ["a"], "images": ["p.jpg"]})
    assert reasons(rows) == [("a", "not_an_image")]


def test_strings_without_their_annotation_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG pixels")
    rows = rows_of(
        tmp_path,
        {
            "id": [b"x", "é".encode(), b"\xff"],
            "text": [b"one", b"\xff", b"two"],
            "image_path": [b"a.png", None, b"gone.png"],
        },
    )
    assert rows[0] == CorpusRow("x", "one", b"\x89PNG pixels", offset=0)
    assert reasons(rows[1:]) == [("é", "text_not_unicode"), ("\\xff", "missing_image")]


def test_bytes_of_a_picture_are_never_taken_for_a_path(tmp_path: Path) -> None:
    for data in (b"\x00\x01a.png", b"\xff\xd8\xff", b"GIF89a\x01\x00"):
        (row,) = rows_of(tmp_path, {"image": [data]})
        assert row.image == data


def test_a_date_beyond_the_calendar_keeps_its_row(tmp_path: Path) -> None:
    until = pa.array([0, 9223371331200000000, None], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["x", "y", "z"], "until": until}), tmp_path / "a.parquet")
    rows = list(read_rows(tmp_path / "a.parquet", ReadOptions(columns=("until",))))
    assert [row.text for row in rows] == ["x", "y", "z"]
    assert ["1970" in (row.source or "") for row in rows] == [True, False, False]
    assert "9223371331200000000" in (rows[1].source or "")


def test_failed_downloads_of_img2dataset_are_refused_by_their_status_and_not_embedded_by_their_caption(
    tmp_path: Path,
) -> None:
    rows = rows_of(
        tmp_path,
        {
            "key": ["0", "1", "2"],
            "caption": ["a cat", "a dog", "a cow"],
            "jpg": [b"\x00pixels", None, None],
            "status": ["success", "failed_to_download", "failed_to_resize"],
            "error_message": [None, "HTTP 404", None],
        },
    )
    assert reasons(rows) == [("0", None), ("1", "failed_to_download"), ("2", "failed_to_resize")]
    assert rows[1].refused is not None and rows[1].refused.detail == "HTTP 404"
    # A column of that name alone means nothing.
    assert reasons(rows_of(tmp_path, {"key": ["0"], "text": ["a"], "status": ["sold"]})) == [("0", None)]


def test_two_columns_of_one_name_refuse_the_file_if_they_are_read(tmp_path: Path) -> None:
    texts = pa.array(["a"])
    for names, reason in ((["text", "text"], "broken_shard"), (["text", "x", "x"], None)):
        pq.write_table(pa.Table.from_arrays([texts] * len(names), names=names), tmp_path / "a.parquet")
        (row,) = read_rows(tmp_path / "a.parquet")
        assert (row.refused.reason if row.refused else None) == reason


def test_batches_are_small_where_rows_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "BYTES_AT_ONCE", 10_000)
    rng = np.random.default_rng(0)
    pictures = [{"bytes": rng.bytes(3_000), "path": f"{n}"} for n in range(20)]
    pq.write_table(pa.table({"image": pictures, "other": [b"x" * 9_000] * 20}), tmp_path / "a.parquet")
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert parquet_rows.rows_at_once(file, 0, ["image"]) == 3
    assert [row.image for row in read_rows(tmp_path / "a.parquet")] == [picture["bytes"] for picture in pictures]


def test_batches_are_small_where_one_cell_may_be_repeated_from_the_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "MOST_BYTES", 1_000_000)
    cell = np.random.default_rng(0).bytes(100_000)
    pq.write_table(pa.table({"image": [cell] * 256}), tmp_path / "a.parquet")  # 100 KB that make 26 MB
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert parquet_rows.rows_at_once(file, 0, ["image"]) == 9
    assert [row.image for row in read_rows(tmp_path / "a.parquet")] == [cell] * 256
    pq.write_table(pa.table({"image": [cell] * 256}), tmp_path / "a.parquet", use_dictionary=False)
    assert parquet_rows.rows_at_once(pq.ParquetFile(tmp_path / "a.parquet"), 0, ["image"]) == 256


@pytest.mark.parametrize("empty", [b"", {"bytes": b"", "path": None}, {"bytes": b"", "path": ""}])
def test_a_picture_of_no_bytes_beside_a_text_is_refused_and_not_embedded_as_text(tmp_path: Path, empty: Any) -> None:
    none = {"bytes": None, "path": None} if isinstance(empty, dict) else None
    columns = {"id": ["a", "b"], "text": ["one", "two"], "image": [empty, none]}
    assert reasons(rows_of(tmp_path, columns)) == [("a", "empty_image"), ("b", None)]


def test_an_empty_text_in_the_place_of_bytes_leaves_the_path(tmp_path: Path) -> None:
    (tmp_path / "pic.png").write_bytes(b"picture")
    rows = rows_of(tmp_path, {"text": ["a"], "image": [{"bytes": "", "path": "pic.png"}]})
    assert rows[0].image == b"picture"


def test_a_batch_that_arrow_cannot_give_is_read_in_smaller_ones_from_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": [str(n) for n in range(40)]}), tmp_path / "a.parquet")
    asked: list[int] = []
    batches = parquet_rows._batches

    def limited(file: Any, group: int, columns: Any, rows: int, *, skip: int) -> Any:
        asked.append(rows)
        for number, batch in enumerate(batches(file, group, columns, rows, skip=skip)):
            if (rows > 4 and number == 1) or rows == 256:
                raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
            yield batch

    monkeypatch.setattr(parquet_rows, "_batches", limited)
    assert [row.text for row in read_rows(tmp_path / "a.parquet")] == [str(n) for n in range(40)]
    assert asked == [256, 32, 4]


def test_whatever_a_reader_raises_ends_its_shard_after_the_good_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(shard: Path, options: ReadOptions) -> Iterator[CorpusRow]:
        yield CorpusRow("a", "good")
        raise MemoryError("a surprise")

    monkeypatch.setitem(READERS, ".parquet", broken)
    assert reasons(list(read_rows(tmp_path / "a.parquet"))) == [("a", None), ("a.parquet", "broken_shard")]


def test_whatever_a_row_raises_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(ReadOptions):
        def source(self, record: Any) -> str | None:
            if record["text"] == "b":
                raise RecursionError("too deep")
            return None

    pq.write_table(pa.table({"id": ["1", "2"], "text": ["b", "c"]}), tmp_path / "a.parquet")
    rows = list(read_rows(tmp_path / "a.parquet", Odd()))
    assert reasons(rows) == [("1", "unreadable_row"), ("2", None)]
