"""Which rows of a shard are read for embedding: one of each content, none that is done, none that has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mme5core.corpus import index as index_module
from mme5core.corpus import unembedded
from mme5core.corpus.contents import Contents, number_contents
from mme5core.corpus.index import Index
from mme5core.corpus.unembedded import EmbeddingKey, ReadUnembedded
from mme5core.corpus.vector_log import VectorPlaces, append, vector_schema
from mme5core.embedding_settings import InstructionSettings
from mme5core.readers import CorpusRow, ReadOptions
from tests.core.corpus.indexes import indexed
from tests.core.corpus.picture_server import PictureServer

KEY_OF = EmbeddingKey(InstructionSettings())


class Corpus:
    """Shards of texts, scanned as the job does it."""

    def __init__(self, folder: Path, *shards: list[str]) -> None:
        self.folder = folder
        for number, texts in enumerate(shards):
            self.write(number, texts)
        paths = [self.path(number) for number in range(len(shards))]
        self.index: Index = indexed(folder, paths, KEY_OF)
        self.starts = self.index.starts
        self.contents: Contents = number_contents(self.index, folder)

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard}.jsonl"

    def write(self, shard: int, texts: list[str]) -> None:
        lines = [json.dumps({"id": f"{shard}-{n}", "text": text}) for n, text in enumerate(texts)]
        self.path(shard).write_text("\n".join(lines))

    def read(self, *shards: int, done: tuple[int, ...] = (), window_rows: int = 100) -> list[list[dict[str, Any]]]:
        places = np.full(len(self.contents), -1)
        places[list(done)] = 7
        (places >= 0).tofile(self.folder / "done")
        read = ReadUnembedded(
            self.index.folder,
            self.starts,
            self.contents,
            self.folder / "done",
            KEY_OF,
            window_rows,
            ReadOptions(),
        )
        items = [{"shard": shard, "path": str(self.path(shard)), "label": ""} for shard in shards]
        return [window.to_pylist() for window in read.windows(items)]


def texts(tables: list[list[dict[str, Any]]]) -> list[tuple[int, str | None]]:
    return [(row["content"], row["text"]) for table in tables for row in table]


@pytest.mark.parametrize("rows_per_group", [1 << 14, 2, 1])
def test_each_content_is_read_once_in_the_shard_where_it_comes_first(
    rows_per_group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "ROWS_PER_GROUP", rows_per_group)
    corpus = Corpus(tmp_path, ["a", "b", "a", "", "c"], ["c", "d", "b", "e", "d"])
    assert texts(corpus.read(0)) == [(0, "a"), (1, "b"), (2, "c")]
    assert texts(corpus.read(1)) == [(3, "d"), (4, "e")]
    # Shards that a task reads together share windows.
    assert [len(window) for window in corpus.read(0, 1, window_rows=4)] == [4, 1]


def test_what_is_done_is_not_read_again_and_tables_have_the_size_of_a_window(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, list("abcdef"))
    tables = corpus.read(0, done=(1, 3), window_rows=2)
    assert [texts([table]) for table in tables] == [[(0, "a"), (2, "c")], [(4, "e"), (5, "f")]]
    assert texts(corpus.read(0, done=(0, 1, 2, 3, 4, 5))) == []


def test_a_row_that_has_changed_is_refused_and_one_that_cannot_be_read_again_is_left_for_another_run(
    tmp_path: Path,
) -> None:
    corpus = Corpus(tmp_path, ["a", "b", "c", "d"], ["e"])
    corpus.write(0, ["a", "other", ""])
    corpus.path(1).unlink()
    (rows,) = corpus.read(0, 1)
    assert [(row["content"], row["text"], row["reason"]) for row in rows] == [
        (0, "a", None),
        (1, None, "changed_since_scan"),
    ]


def test_a_window_ends_where_it_has_enough_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unembedded, "WINDOW_BYTES", 10)
    corpus = Corpus(tmp_path, ["a" * 9, "bb", "c", "d" * 30, "e"])
    assert [len(window) for window in corpus.read(0)] == [2, 2, 1]


def test_a_reading_task_that_is_tried_again_yields_the_windows_of_the_first_try(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, list("abcdef"))
    rows = tmp_path / "rows"
    rows.mkdir()
    places = VectorPlaces(rows, 1, len(corpus.contents), tmp_path / "places")
    read = ReadUnembedded(
        corpus.index.folder, corpus.starts, corpus.contents, places.write_done(), KEY_OF, 2, ReadOptions()
    )
    items = [{"shard": 0, "path": str(corpus.path(0)), "label": ""}]
    first = [window.to_pylist() for window in read.windows(items)]
    table = pa.Table.from_pylist([{"content": n, "embedding": [1.0]} for n in (0, 1)], vector_schema(1))
    places.add(append(rows, table))
    assert places.num_done == 2
    assert [window.to_pylist() for window in read.windows(items)] == first


def windows_of(
    folder: Path, shard: Path, options: ReadOptions, *, refuses_unreachable: bool = False, scan_only: bool = False
) -> list[dict[str, Any]]:
    """What both passes over one shard give."""
    index = indexed(folder, [shard], KEY_OF, options=options)
    if scan_only:
        return []
    contents = number_contents(index, folder)
    np.zeros(len(contents), np.bool_).tofile(folder / "done")
    read = ReadUnembedded(
        index.folder, index.starts, contents, folder / "done", KEY_OF, 100, options, refuses_unreachable
    )
    windows = read.windows([{"shard": 0, "path": str(shard), "label": ""}])
    return [row for window in windows for row in window.to_pylist()]


def test_a_picture_at_a_server_is_fetched_once_and_kept_in_order(server: PictureServer, tmp_path: Path) -> None:
    lines = [{"id": str(n), "image": f"{server.address}/{n % 30}.png"} for n in range(40)]
    lines.insert(7, {"id": "text", "image": None, "text": "between"})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    options = ReadOptions(allow_hosts=("127.0.0.1",), fetch=False)
    rows = windows_of(tmp_path, tmp_path / "a.jsonl", options)
    assert sorted(server.asked) == sorted(f"/{n}.png" for n in range(30))
    assert [row["content"] for row in rows] == list(range(31)) and rows[7]["text"] == "between"
    assert [row["image"] for row in rows[:7]] == [f"pixels of /{n}.png".encode() for n in range(7)]


@pytest.mark.parametrize("refuses", [False, True])
def test_what_a_server_does_not_give_now_is_pending_and_what_it_does_not_have_refused(
    refuses: bool, server: PictureServer, tmp_path: Path
) -> None:
    server.away = {"/1.png"}
    names = ("0.png", "1.png", "gone.png")
    lines = [json.dumps({"id": name, "image": f"{server.address}/{name}"}) for name in names]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = ReadOptions(allow_hosts=("127.0.0.1",), fetch=False)
    rows = windows_of(tmp_path, tmp_path / "a.jsonl", options, refuses_unreachable=refuses)
    outcomes = [(row["reason"], row["is_pending"]) for row in rows]
    assert outcomes == [(None, False), ("unreachable_image", not refuses), ("missing_image", False)]
    assert server.address in rows[1]["detail"] and "503" in rows[1]["detail"]


def test_nothing_is_fetched_while_a_corpus_is_scanned(server: PictureServer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "image": f"{server.address}/a.png"}))
    windows_of(tmp_path, tmp_path / "a.jsonl", ReadOptions(fetch=False), scan_only=True)
    assert not server.asked


def test_a_folder_may_grow_and_shrink_between_the_passes(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "bcde":
        (pictures / f"{name}.png").write_bytes(name.encode())
    index = indexed(tmp_path, [pictures], KEY_OF)
    contents = number_contents(index, tmp_path)
    np.zeros(len(contents), np.bool_).tofile(tmp_path / "done")
    (pictures / "a.png").write_bytes(b"new")
    (pictures / "c.png").unlink()
    (pictures / "d.png").write_bytes(b"other")
    read = ReadUnembedded(index.folder, index.starts, contents, tmp_path / "done", KEY_OF, 100, ReadOptions())
    (window,) = read.windows([{"shard": 0, "path": str(pictures), "label": ""}])
    assert [(row["image"], row["reason"]) for row in window.to_pylist()] == [
        (b"b", None),
        (None, "missing_image"),
        (None, "changed_since_scan"),
        (b"e", None),
    ]


def test_content_and_picture_keys_do_not_depend_on_the_instruction_and_a_picture_alone_is_its_own(
    tmp_path: Path,
) -> None:
    plain, asked = EmbeddingKey(InstructionSettings()), EmbeddingKey(InstructionSettings(T="Find:", I="See:", IT="Do:"))

    def columns(row: CorpusRow, key_of: EmbeddingKey = plain) -> tuple[Any, ...]:
        return tuple(key_of.content_columns(row, key_of(row)).values())

    text, alone = CorpusRow("a", "a cat"), CorpusRow("b", image=b"picture")
    both, two = CorpusRow("c", "a cat", b"picture"), CorpusRow("d", images=(b"picture", b"other"))
    for row in (text, alone, both, two):
        assert columns(row) == columns(row, asked)
    assert [columns(row)[2] for row in (text, alone, both, two)] == ["T", "I", "IT", "I"]
    assert columns(alone)[0] == columns(alone)[1] == columns(both)[1]  # the candidate that is the query's own picture
    assert columns(text)[1] is columns(two)[1] is None
    assert len({columns(row)[0] for row in (text, alone, both, two)}) == 4
    assert columns(CorpusRow("e", "a cat", instruction="Other:"))[0] == columns(text)[0]
