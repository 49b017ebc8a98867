"""Samples of a file: a sample or a reason for each row, in order, in the format that the columns show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.errors import InputError
from mme5core.sample_readers import ours, read_samples
from mme5core.sample_table import SampleTable, map_samples
from mme5core.schemas import CONTENT, CONTENT_OF_SEVERAL, IMAGE
from mme5core.types import Content, Rejected, Sample

Row = dict[str, Any]


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), shade).save(buffer, format="PNG")
    return buffer.getvalue()


def row(sample_id: str | None, query: Row, negatives: list[Row] | None = None) -> Row:
    return {
        "id": sample_id,
        "query": query,
        "positive": {"text": "a cat"},
        "negatives": negatives,
        "instruction": "Find:",
        "document_instruction": None,
    }


def write(file: Path, rows: list[Row], content: pa.DataType = CONTENT) -> Path:
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("query", content),
            ("positive", content),
            ("negatives", pa.list_(content)),
            ("instruction", pa.string()),
            ("document_instruction", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), file)
    return file


def query_of(item: Sample | Rejected) -> Content | tuple[str, str]:
    return item.query if isinstance(item, Sample) else (item.reason, item.detail)


def test_every_row_is_a_sample_or_a_reason_in_the_files_order(tmp_path: Path) -> None:
    rows = [
        row("a", {"text": "one"}, [{"text": "x"}]),
        row(None, {"text": " "}),
        row("a", {"text": "two", "image": {"bytes": b"not decoded"}}, [{"text": "x"}, {"image": {"bytes": b"y"}}]),
        row("", {"image": {"bytes": None, "path": "gone.jpg"}}),
    ]
    items = list(read_samples(write(tmp_path / "s.parquet", rows)))
    assert items == [
        Sample("a", Content("one"), Content("a cat"), (Content("x"),), "Find:"),
        Rejected("s.parquet:1", "bad_content", "content needs a text, a picture, or both; got neither"),
        Sample("a", Content("two", b"not decoded"), Content("a cat"), (Content("x"), Content(image=b"y")), "Find:"),
        Rejected("s.parquet:3", "bad_content", "a picture without bytes"),
    ]
    assert list(read_samples(str(tmp_path / "s.parquet"), format="ours")) == items


def test_a_content_of_several_pictures_comes_back_with_all_of_them_in_order(tmp_path: Path) -> None:
    pages = Content("what is on page two?", images=[png(0), png(1), png(0)])
    contents = [pages, Content(images=pages.images), Content("one", png(3)), Content("none")]
    rows = [row(str(place), ours.to_struct(content)) for place, content in enumerate(contents)]
    file = write(tmp_path / "s.parquet", rows, CONTENT_OF_SEVERAL)
    assert [query_of(item) for item in read_samples(file)] == contents
    *_, refused = map_samples({"all": [file]}, tmp_path / "mapped.arrow", num_negatives=0, limit=None)
    samples = SampleTable(tmp_path / "mapped.arrow")
    assert [samples[place].query for place in range(4)] == contents and refused == []


def test_one_picture_is_stored_in_the_field_that_files_without_several_have() -> None:
    struct = ours.to_struct(Content("a", b"p"))
    assert struct == {"text": "a", "image": {"bytes": b"p", "path": None}, "images": None}
    assert pa.scalar(struct, CONTENT_OF_SEVERAL).as_py() == struct
    several = ours.to_struct(Content(images=[b"p", b"q"]))
    assert several["image"] is None and [image["bytes"] for image in several["images"]] == [b"p", b"q"]


def test_one_bad_picture_of_several_and_pictures_in_both_fields_are_refused(tmp_path: Path) -> None:
    def image(data: bytes | None) -> Row:
        return {"bytes": data, "path": None}

    rows = [
        row("both", {"image": image(png(0)), "images": [image(png(1))]}),
        row("empty", {"images": [image(png(0)), image(None)]}),
        row("broken", {"images": [image(png(0)), image(png(1)[:45])]}),
        row("one in a list", {"image": None, "images": [image(png(1))]}),
    ]
    file = write(tmp_path / "s.parquet", rows, CONTENT_OF_SEVERAL)
    *_, refused = map_samples({"all": [file]}, tmp_path / "mapped.arrow", num_negatives=0, limit=None)
    assert isinstance(refused, list)
    assert [(item.id, item.reason) for item in refused] == [
        ("both", "bad_content"),
        ("empty", "bad_content"),
        ("broken", "broken_image"),
    ]
    assert SampleTable(tmp_path / "mapped.arrow")[0].query == Content(image=png(1))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("gone.png", "missing_image"),
        ("folder", "missing_image"),
        ("../outside.png", "outside_images"),
        ("folder/../../outside.png", "outside_images"),
        ("{root}/outside.png", "outside_images"),
        ("http://host/a.png", "outside_images"),
        ("a\0.png", "missing_image"),
    ],
)
def test_a_picture_that_is_missing_or_outside_the_folder_is_refused(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "pictures" / "folder").mkdir(parents=True)
    (tmp_path / "pictures" / "folder" / "in.png").write_bytes(b"not decoded")
    (tmp_path / "outside.png").write_bytes(png(0))
    path = path.replace("{root}", str(tmp_path))
    rows = [row("a", {"image": {"path": path}}), row("b", {"image": {"path": "folder/in.png"}})]
    items = list(read_samples(write(tmp_path / "s.parquet", rows), tmp_path / "pictures"))
    assert items[0] == Rejected("a", reason, path)
    assert query_of(items[1]) == Content(image=str(tmp_path / "pictures" / "folder" / "in.png"))


def test_an_unknown_format_is_a_value_error_that_lists_the_known(tmp_path: Path) -> None:
    file = write(tmp_path / "s.parquet", [row("a", {"text": "one"})])
    with pytest.raises(ValueError, match=r"unknown format of samples 'tevatronn'; known: \['judged', 'ours'"):
        read_samples(file, format="tevatronn")


def test_unknown_columns_are_an_input_error_with_the_columns_and_the_formats(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "anchor": ["b"], "image": pa.array([None], IMAGE)}), tmp_path / "s.parquet")
    for name in (None, "ours"):
        with pytest.raises(InputError, match=r"no column 'query'; it has id, anchor, image; known formats: .*ours"):
            read_samples(tmp_path / "s.parquet", format=name)
    (tmp_path / "t.parquet").write_bytes(b"half")
    with pytest.raises(InputError, match=r"t\.parquet: cannot be read as Parquet"):
        read_samples(tmp_path / "t.parquet")
