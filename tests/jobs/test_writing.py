"""Parts written beside the embedding, and whose folder they go into, without Ray."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mme5core.corpus.contents import Contents, number_contents
from mme5core.corpus.index import Index
from mme5core.corpus.source_columns import SourceColumns
from mme5core.corpus.unembedded import EmbeddingKey
from mme5core.corpus.vector_log import VectorPlaces, append, vector_schema
from mme5core.corpus.vector_parts import WriteVectors, part_ranges
from mme5core.embedding_settings import EmbeddingSettings
from mme5core.errors import WorkFailed
from mme5core.parts import PartFiles
from mme5core.readers import AS_IT_IS
from mme5core.tasks import Item, Task, run_here
from mme5core.vectors import VectorFormat
from rayjobs.embed_corpus.writing import PartWriter
from rayjobs.embedding import embed, embed_contents
from rayjobs.on_ray.resources import Placement
from tests.core.corpus.indexes import indexed

NUM_ROWS, WIDTH = 6, 2


class Corpus:
    """Six texts, each a part of its own, and none embedded yet."""

    def __init__(self, root: Path) -> None:
        self.settings = EmbeddingSettings(model="m")
        shard = root / "a.jsonl"
        shard.write_text("\n".join(json.dumps({"id": str(n), "text": f"text {n}"}) for n in range(NUM_ROWS)))
        self.index: Index = indexed(root, [shard], EmbeddingKey(self.settings.instruction))
        self.contents: Contents = number_contents(self.index, root)
        self.rows, self.output, self.parts = root / "rows", root / "out", root / "parts"
        for folder in (self.rows, self.output, self.parts):
            folder.mkdir()
        self.places = VectorPlaces(self.rows, WIDTH, NUM_ROWS, root / "done")

    def embed(self, numbers: Sequence[int]) -> str:
        """A file of the log with the vectors [n, n]; its name."""
        records = [{"content": n, "embedding": [n, n]} for n in numbers]
        return append(self.rows, pa.Table.from_pylist(records, vector_schema(WIDTH)))

    def writer(self, run: Any = run_here, may_publish: Any = lambda: None) -> PartWriter:
        vector_format, source = VectorFormat(WIDTH, WIDTH), SourceColumns({})
        schema = pa.schema([("id", pa.string()), *vector_format.fields()])
        task = WriteVectors(
            self.index,
            self.contents,
            self.places.file,
            self.places.log,
            vector_format,
            None,
            schema,
            source,
            self.parts,
        )
        ranges = part_ranges(self.index, self.contents, 1)
        files = PartFiles(self.parts, self.output)
        return PartWriter(files, ranges, self.contents, self.places, task, run, may_publish=may_publish)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


def test_parts_that_are_final_together_are_written_together(corpus: Corpus) -> None:
    calls: list[int] = []

    def run(task: Task, items: Sequence[Item]) -> Iterator[Item]:
        calls.append(len(items))
        return run_here(task, items)

    writer = corpus.writer(run)
    corpus.places.add(corpus.embed([0, 1, 2, 4]))
    writer.write_finished()  # before the thread begins: all three that are final wait for it
    with writer:
        pass
    assert calls == [3]
    assert sorted(file.name for file in corpus.output.iterdir()) == [f"part-{n:05d}.parquet" for n in range(3)]
    parts = writer.write_rest()
    assert [part.report["kept"] for part in parts] == [1, 1, 1, 0, 1, 0]


def test_after_a_failure_no_further_part_is_written(corpus: Corpus) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()

    def run(task: Task, items: Sequence[Item]) -> Iterator[Item]:
        for item in items:
            has_begun.set()
            may_go_on.wait(10)
            yield from run_here(task, [item])

    corpus.places.add(corpus.embed(range(NUM_ROWS)))
    writer = corpus.writer(run)
    with pytest.raises(OSError), writer:
        writer.write_finished()
        has_begun.wait(10)
        threading.Timer(0.2, may_go_on.set).start()
        raise OSError
    assert not writer._thread.is_alive() and len(list(corpus.output.iterdir())) == 1


def test_a_part_does_not_go_into_the_folder_of_another_run(corpus: Corpus) -> None:
    def refuse() -> None:
        raise WorkFailed("another run of this folder has taken over")

    corpus.places.add(corpus.embed(range(NUM_ROWS)))
    with corpus.writer(may_publish=refuse) as writer:
        writer.write_finished()
    with pytest.raises(WorkFailed, match="taken over"):
        writer.write_rest()
    assert list(corpus.output.iterdir()) == []


def test_a_window_that_comes_after_another_run_took_over_changes_nothing(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = corpus.embed([0, 1])
    monkeypatch.setattr(embed, "cluster_cpus", lambda: 1)
    monkeypatch.setattr(embed, "workers_per_node", lambda num_workers: 1)
    row = {"file": name, "unloadable": "", "failure": ""}
    monkeypatch.setattr(embed, "stream", lambda *args, **more: iter([row]))

    def steps(check: Any) -> Iterator[None]:
        return embed_contents(
            corpus.index,
            corpus.contents,
            corpus.places,
            corpus.settings,
            AS_IT_IS,
            Placement(1.0, 0.0),
            labels=[""],
            num_workers=1,
            load=lambda settings: None,
            check_owner=check,
        )

    def refuse() -> None:
        raise WorkFailed("another run of this folder has taken over")

    with pytest.raises(WorkFailed, match="taken over"):
        list(steps(refuse))
    assert np.all(corpus.places.places == -1)
    assert list(steps(lambda: None)) == [None] and corpus.places.num_done == 2
