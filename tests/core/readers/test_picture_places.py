"""Tests of where a corpus may take its pictures from: below its files, from `pictures`, from allowed servers."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from mme5core.readers import ReadOptions, input_files, read_rows
from mme5core.readers.picture_places import RemotePicture
from mme5core.readers.pictures import read_picture
from tests.core.test_images import encoded, noise

PNG = encoded(noise(4, 3), "PNG")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("corpus/a.png", "corpus/sub/b.png", "elsewhere/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "corpus" / "link.png").symlink_to("../elsewhere/c.png")
    (tmp_path / "corpus" / "inner.png").symlink_to("sub/b.png")
    return tmp_path / "corpus"


def outcome(corpus: Path, image: str, **options: object) -> str | bytes | RemotePicture:
    (corpus / "rows.jsonl").write_text(json.dumps({"id": "a", "image": image}))
    (row,) = read_rows(corpus / "rows.jsonl", ReadOptions(**options))  # type: ignore[arg-type]
    if row.refused is not None:
        assert row.refused.reason != "outside_corpus" or "pictures=" in row.refused.detail
        return row.refused.reason
    assert row.image is not None
    return row.image


@pytest.mark.parametrize(
    "image", ["a.png", "sub/b.png", "sub/../a.png", "inner.png", "{corpus}/a.png", "file:{corpus}/a.png"]
)
def test_what_lies_below_the_corpus_is_read(image: str, corpus: Path) -> None:
    assert outcome(corpus, image.format(corpus=corpus)) == PNG


@pytest.mark.parametrize(
    "image",
    [
        "../elsewhere/c.png",
        "link.png",
        "/etc/hostname",
        "file:///etc/hostname",
        "sub/../../elsewhere/c.png",
        "s3://b/c.png",
    ],
)
def test_what_lies_elsewhere_is_refused_with_the_key_that_would_allow_it(image: str, corpus: Path) -> None:
    assert outcome(corpus, image) == "outside_corpus"


def test_another_folder_is_allowed_by_its_name(corpus: Path) -> None:
    elsewhere = str(corpus.parent / "elsewhere")
    assert outcome(corpus, "c.png", pictures=elsewhere) == PNG
    assert outcome(corpus, f"{elsewhere}/c.png", pictures=elsewhere) == PNG
    assert outcome(corpus, "../corpus/a.png", pictures=elsewhere) == PNG  # still below the file's own folder
    assert outcome(corpus, "../../x.png", pictures=elsewhere) == "outside_corpus"
    stored = outcome(corpus, "s3://b/c.png", pictures="s3://b/", fetch=False)
    assert isinstance(stored, RemotePicture) and str(stored.place) == "s3://b/c.png"
    other = outcome(corpus, "s3://b/c.png?endpoint_override=evil.example", pictures="s3://b?region=r", fetch=False)
    assert isinstance(other, RemotePicture) and str(other.place) == "s3://b/c.png?region=r"
    assert outcome(corpus, "s3://b/../c/d.png", pictures="s3://b/", fetch=False) == "outside_corpus"


def test_links_of_a_hub_snapshot_to_its_blobs_are_read(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "datasets--a--b" / "blobs", tmp_path / "datasets--a--b" / "snapshots" / "0123"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "ff").write_bytes(PNG)
    (snapshot / "a.png").symlink_to("../../blobs/ff")
    assert outcome(snapshot, "a.png") == PNG
    assert [row.image for row in read_rows(snapshot)] == [PNG]


def test_a_link_out_of_a_folder_of_pictures_is_refused_by_name(corpus: Path) -> None:
    rows = {row.id: row.refused.reason if row.refused else row.image for row in read_rows(corpus)}
    assert rows == {"a.png": PNG, "inner.png": PNG, "link.png": "outside_corpus", "sub/b.png": PNG}


def test_a_picture_in_the_text_itself_is_decoded(corpus: Path) -> None:
    text = base64.b64encode(PNG).decode()
    for image in (text, f"data:image/png;base64,{text}", text.rstrip("="), "\n".join((text[:40], text[40:]))):
        assert outcome(corpus, image) == PNG
    assert outcome(corpus, "data:image/png;base64,????") == "not_an_image"


def test_a_pipe_and_a_folder_are_no_pictures(corpus: Path) -> None:
    import os

    os.mkfifo(corpus / "pipe.png")
    assert outcome(corpus, "pipe.png") == "missing_image"
    assert outcome(corpus, "sub") == "missing_image"
    assert outcome(corpus, "gone.png") == "missing_image"


def test_an_address_is_left_at_its_server_until_it_is_fetched(corpus: Path) -> None:
    remote = outcome(corpus, "HTTP://example.org/my cat.png", fetch=False)
    assert isinstance(remote, RemotePicture) and remote.place.path == "http://example.org/my cat.png"
    assert outcome(corpus, "http://127.0.0.1:9/a.png") == "host_not_allowed"
    assert outcome(corpus, "http:///a.png") == "missing_image"


def test_a_file_whose_name_is_no_utf_8_is_read_and_found_again_by_its_id(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\xfe.png")).write_bytes(PNG)
    (tmp_path / "a\nb.png").write_bytes(PNG)
    rows = {row.id: row.image for row in read_rows(tmp_path)}
    assert rows == {"a\nb.png": PNG, "\\udcff\\udcfe.png": PNG}
    assert [read_picture(tmp_path, name, ReadOptions()) for name in rows] == [PNG, PNG]
    assert len(input_files([tmp_path])) == 1
