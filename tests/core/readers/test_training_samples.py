"""Training samples as a corpus: their queries, or their positives, each under its sample's id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.readers import CorpusRow, ReadOptions, read_rows
from mme5core.sample_readers.ours import to_struct
from mme5core.schemas import CONTENT_OF_SEVERAL
from mme5core.types import Content

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("query", CONTENT_OF_SEVERAL),
        ("positive", CONTENT_OF_SEVERAL),
        ("negatives", pa.list_(CONTENT_OF_SEVERAL)),
        ("instruction", pa.string()),
        ("document_instruction", pa.string()),
        ("task", pa.string()),
    ]
)


def sample(sample_id: str | None, query: Any, positive: Any, task: str = "vqa") -> dict[str, Any]:
    return {
        "id": sample_id,
        "query": query and to_struct(query),
        "positive": positive and to_struct(positive),
        "negatives": [to_struct(Content("never a row"))],
        "instruction": "Find:",
        "document_instruction": None,
        "task": task,
    }


def rows_of(tmp_path: Path, samples: list[dict[str, Any]], **options: Any) -> list[CorpusRow]:
    pq.write_table(pa.Table.from_pylist(samples, SCHEMA), tmp_path / "a.parquet")
    return list(read_rows(tmp_path / "a.parquet", ReadOptions(**options)))


SAMPLES = [
    sample("one", Content("a cat", b"picture 1"), Content(image=b"picture 2")),
    sample("two", Content(images=(b"a", b"b")), Content("a dog"), task="retrieval"),
]


def test_queries_have_their_instruction_and_positives_that_of_documents(tmp_path: Path) -> None:
    queries = rows_of(tmp_path, SAMPLES, side="query")
    assert [(row.id, row.text, row.image, row.images, row.instruction, row.offset) for row in queries] == [
        ("one", "a cat", b"picture 1", (), "Find:", 0),
        ("two", None, None, (b"a", b"b"), "Find:", 1),
    ]
    positives = rows_of(tmp_path, SAMPLES, side="target")
    assert [(row.id, row.text, row.image, row.instruction) for row in positives] == [
        ("one", None, b"picture 2", None),
        ("two", "a dog", None, None),
    ]


def test_both_sides_at_once_are_refused_since_they_share_their_ids(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, SAMPLES)
    assert row.refused is not None and row.refused.reason == "two_sides" and "side=query" in row.refused.detail


def test_columns_travel_with_the_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, SAMPLES, side="query", columns=("task", "nowhere"))
    assert [row.source for row in rows] == ['{"task": "vqa"}', '{"task": "retrieval"}']


def test_a_side_of_nothing_is_refused_by_its_sample_and_a_missing_id_is_its_place(tmp_path: Path) -> None:
    broken = sample("empty", Content("x"), Content("y")) | {"query": {"text": " ", "image": None, "images": None}}
    broken_picture = sample("bytes", Content("x"), Content("y"))
    broken_picture["query"]["image"] = {"bytes": b"", "path": None}
    samples = [broken, sample(None, Content("z"), Content("y")), broken_picture, sample("none", None, Content("y"))]
    rows = rows_of(tmp_path, samples, side="query")
    assert [(row.id, row.refused and row.refused.reason) for row in rows] == [
        ("empty", "empty_row"),
        ("a.parquet:1", None),
        ("bytes", "empty_image"),
        ("none", "empty_row"),
    ]
    assert replace(rows[1], offset=-1) == CorpusRow("a.parquet:1", "z", instruction="Find:")
