"""UniME-V2's JSON: rows as published, hostile ones refused, and what we write read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mme5core import Content
from mme5core.errors import InputError
from mme5core.sample_readers import count_samples, json_rows, read_samples
from mme5core.sample_readers.judged import to_row
from mme5core.sample_table import SampleTable, map_samples
from mme5core.types import Rejected, Sample
from tests.core.contents import picture

# As the example data has it, shortened.
ROW: dict[str, Any] = {
    "query_text": "<|image_1|>\nRepresent the given image with the following question: What is it?\n",
    "query_image": "images/OK-VQA/Train/a.png",
    "pos_text": "a cat",
    "pos_image": "",
    "query_pos_scores": 0.7216,
    "hard_negatives": [["a dog", ""], ["<|image_1|>\nRepresent the given image.", "images/OK-VQA/Train/a.png"]],
    "hard_negatives_scores": [0.0153, 0.4408],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures" / "images" / "OK-VQA" / "Train"
    folder.mkdir(parents=True)
    picture(1).save(folder / "a.png")
    return tmp_path / "pictures"


def read(folder: Path, images: Path | None, *rows: Any, name: str = "train.json") -> list[Sample | Rejected]:
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    (folder / name).write_text(text)
    return list(read_samples(folder / name, images))


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_published_row_is_a_sample_with_scores(name: str, images: Path, tmp_path: Path) -> None:
    first, second = read(tmp_path, images, ROW, ROW, name=name)
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert (first.id, second.id) == (f"{name}:0", f"{name}:1")
    path = f"{images}/images/OK-VQA/Train/a.png"
    question = "Represent the given image with the following question: What is it?\n"
    assert first.query == Content(question, path) and first.positive == Content("a cat")
    assert first.negatives == (Content("a dog"), Content("Represent the given image.", path))
    assert first.scores == (0.7216, 0.0153, 0.4408)
    assert count_samples(tmp_path / name) == 2


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"hard_negatives_scores": [0.1]}, "bad_content", "2 hard_negatives with 1 scores"),
        ({"query_pos_scores": 1.5}, "bad_content", "a score is a number in [0, 1], not 1.5"),
        ({"query_pos_scores": float("nan")}, "bad_content", "not nan"),
        ({"query_pos_scores": None}, "bad_content", "not None"),
        ({"hard_negatives": [["a"], ["b", ""]]}, "bad_content", "must be [text, image]"),
        ({"hard_negatives": "eval"}, "bad_content", "must be lists"),
        ({"pos_text": ""}, "bad_content", ""),
        ({"pos_text": 7}, "bad_content", "must be strings"),
        ({"query_image": "images/OK-VQA/Train/gone.png"}, "missing_image", "gone.png"),
        ({"query_image": "../../etc/passwd"}, "outside_images", "passwd"),
    ],
)
def test_a_row_that_cannot_be_used_has_a_reason(
    change: dict[str, Any], reason: str, detail: str, images: Path, tmp_path: Path
) -> None:
    good, refused, again = read(tmp_path, images, ROW, ROW | change, ROW)
    assert isinstance(good, Sample) and isinstance(again, Sample)
    assert isinstance(refused, Rejected) and refused.reason == reason and detail in refused.detail


def test_a_row_without_a_field_and_a_picture_without_a_folder_are_refused(images: Path, tmp_path: Path) -> None:
    lacking = {name: cell for name, cell in ROW.items() if name != "pos_text"}
    _, refused = read(tmp_path, images, ROW, lacking)
    assert isinstance(refused, Rejected) and refused.detail == "no field 'pos_text'"
    (refused,) = read(tmp_path, None, ROW)
    assert isinstance(refused, Rejected) and "images= names the folder" in refused.detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "entry 0 is a int, not an object"),
        ("[" * 100_000, "entry 0 cannot be read as JSON"),
        ("", "the file is empty"),
        ("[]", "the file is empty"),
        ('{"data": 1}', "no column"),
        ("\x00\x01", "entry 0 cannot be read as JSON"),
    ],
)
def test_a_file_that_is_no_such_json_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        count_samples(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_a_list_that_ends_in_the_middle_gives_its_whole_entries_and_then_fails(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"a": 1}, {"a":')
    rows = json_rows.json_rows(tmp_path / "x.json")
    assert next(rows) == {"a": 1}
    with pytest.raises(InputError, match="entry 1 cannot be read as JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, ', "the list has no end"),
        ('[{"a": 1}', "the list has no end"),
        ('[{"a": 1}]\n[{"a": 2}]', "follows"),
    ],
)
def test_a_list_without_its_end_or_with_another_behind_it_is_not_taken_for_whole(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text(text)
    rows = json_rows.json_rows(tmp_path / "x.json")
    assert next(rows) == {"a": 1}
    with pytest.raises(InputError, match=message):
        next(rows)


def test_rows_without_ids_of_files_of_one_name_are_told_apart(images: Path, tmp_path: Path) -> None:
    files = []
    for name in "ab":
        (tmp_path / name).mkdir()
        read(tmp_path / name, images, ROW, ROW)
        files.append(tmp_path / name / "train.json")
    *_, refused = map_samples(
        {"input": files}, tmp_path / "samples.arrow", num_negatives=1, limit=None, images=str(images)
    )
    assert refused == []
    ids = SampleTable(tmp_path / "samples.arrow").ids().to_pylist()
    assert ids == ["a/train.json:0", "a/train.json:1", "b/train.json:0", "b/train.json:1"]


def test_bytes_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'[{"a": "\xff\xfe"}]')
    with pytest.raises(InputError, match="entry 0 cannot be read as JSON"):
        list(json_rows.json_rows(tmp_path / "x.json"))


def test_objects_larger_than_a_chunk_and_letters_on_its_edge_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK_CHARS", 7)
    rows = [{"a": "é猫" * n, "n": n} for n in range(20)]
    for name, text in (
        ("x.json", json.dumps(rows, ensure_ascii=False, indent=1)),
        ("x.jsonl", "\n\n".join(map(json.dumps, rows))),
    ):
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        assert list(json_rows.json_rows(tmp_path / name)) == rows


def test_what_is_written_is_read_as_it_was(images: Path, tmp_path: Path) -> None:
    sample = read(tmp_path, images, ROW)[0]
    assert isinstance(sample, Sample)
    paths = {
        id(image): str(Path(str(image)).relative_to(images))
        for c in (sample.query, *sample.negatives)
        for image in c.images
    }
    (again,) = read(tmp_path, images, to_row(sample, paths))
    assert again == sample
    with pytest.raises(ValueError, match="has a score for its positive and for each negative"):
        to_row(Sample("a", Content("q"), Content("p"), (Content("n"),), None, None, scores=(0.5,)), {})
