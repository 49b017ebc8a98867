"""Training samples on disk: from Parquet to one mapped Arrow file that any row can be taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.content_key import document_key
from mme5core.errors import InputError, first_line
from mme5core.images import BadImage, load_rgb
from mme5core.prompt_styles import PICTURE_TOKENS
from mme5core.schemas import CONTENT
from mme5core.storage import AnyPath, parquet_file
from mme5core.types import Content, Rejected, Sample

REQUIRED = ("id", "query", "positive", "negatives", "instruction", "document_instruction")
OPTIONAL = ("task", "scores")
MAPPED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("instruction", pa.string()),
        ("document_instruction", pa.string()),
        ("query", CONTENT),
        ("positive", CONTENT),
        ("negatives", pa.list_(CONTENT)),
        ("task", pa.string()),
        ("scores", pa.list_(pa.float32())),
        ("modality_combination", pa.string()),
        ("positive_key", pa.binary(8)),
    ]
)
ROWS_PER_BATCH = 64


class SampleTable:
    """Samples by position, mapped from disk: memory holds four small columns."""

    def __init__(self, file: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        self.combinations: list[str] = self._table["modality_combination"].to_pylist()
        self.positive_keys: list[bytes] = self._table["positive_key"].to_pylist()
        self.tasks: list[str] = self._table["task"].to_pylist()
        self.sources: list[str] = self._table["source"].to_pylist()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, position: int) -> Sample:
        return to_sample(self._table.slice(position, 1).to_pylist()[0])


def map_samples(
    shards: Mapping[str, Sequence[AnyPath]],
    file: Path,
    *,
    num_negatives: int,
    limit: int | None,
    needs_scores: bool = False,
) -> Iterator[int | list[Rejected]]:
    """Write the usable samples to `file`; yields rows read so far, and the refused ones last.

    A sample is refused for fewer negatives than `num_negatives`, a content that is empty, a picture that does not
    decode, a text that holds a token for a picture, a repeated id, a positive among its own negatives, or, with
    `needs_scores`, no judge's score for each.

    Args:
        shards: files by source.

    Raises:
        InputError: a file without the columns of a sample.
    """
    refused: list[Rejected] = []
    num_read = 0
    temporary = file.with_name(f".{file.name}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, MAPPED) as writer:
        for source, files in shards.items():
            seen: set[str] = set()
            for rows in (rows for shard in files for rows in _batches(shard)):
                if limit is not None:
                    rows = rows[: limit - num_read]
                num_read += len(rows)
                kept = []
                for row in rows:
                    problem = _check(row, num_negatives, seen, needs_scores)
                    if problem:
                        refused.append(problem)
                    else:
                        kept.append(_mapped(row, num_negatives, source))
                writer.write_table(pa.Table.from_pylist(kept, MAPPED))
                yield num_read
                if limit is not None and num_read >= limit:
                    break
    temporary.rename(file)
    yield refused


def to_sample(row: dict[str, Any]) -> Sample:
    """One row of our schema as a sample.

    Raises:
        ValueError: a content with neither text nor picture.
    """
    return Sample(
        row["id"],
        _content(row["query"]),
        _content(row["positive"]),
        tuple(_content(negative) for negative in row["negatives"] or ()),
        row["instruction"],
        row["document_instruction"],
        row.get("source") or "",
        row.get("task") or "",
        tuple(row.get("scores") or ()),
    )


def open_samples(shard: AnyPath) -> pq.ParquetFile:
    """
    Raises:
        InputError: it is no Parquet file, or lacks columns of a sample.
    """
    try:
        parquet = parquet_file(shard)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{shard}: cannot be read as Parquet ({first_line(error)})") from None
    names = parquet.schema_arrow.names
    for name in REQUIRED:
        if name not in names:
            raise InputError(f"{shard}: no column {name!r}; it has {', '.join(names)}")
    return parquet


def _batches(shard: AnyPath) -> Iterator[list[dict[str, Any]]]:
    parquet = open_samples(shard)
    names = parquet.schema_arrow.names
    columns = [*REQUIRED, *(name for name in OPTIONAL if name in names)]
    position = 0
    for batch in parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
        rows = batch.to_pylist()
        for place, row in enumerate(rows, position):
            if row["id"] in (None, ""):
                row["id"] = f"{shard.name}:{place}"
        position += len(rows)
        yield rows


def _check(row: dict[str, Any], num_negatives: int, seen: set[str], needs_scores: bool) -> Rejected | None:
    sample_id = str(row["id"])
    if sample_id in seen:
        return Rejected(sample_id, "duplicate_id")
    seen.add(sample_id)
    try:
        sample = to_sample(row)
        for content in (sample.query, sample.positive, *sample.negatives):
            if content.image is not None:
                load_rgb(content.image)
        texts = [content.text or "" for content in (sample.query, sample.positive, *sample.negatives)]
        for text in (*texts, sample.instruction or "", sample.document_instruction or ""):
            if any(token in text for token in PICTURE_TOKENS):
                return Rejected(sample_id, "picture_token_in_text", text[:80])
    except BadImage as error:
        return Rejected(sample_id, error.reason, error.detail)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Rejected(sample_id, "bad_content", str(error))
    if len(sample.negatives) < num_negatives:
        return Rejected(sample_id, "too_few_negatives", f"{len(sample.negatives)} of num_negatives={num_negatives}")
    if document_key(sample.positive) in {document_key(n) for n in sample.negatives[:num_negatives]}:
        return Rejected(sample_id, "positive_among_negatives")
    if needs_scores and not _are_scores(sample.scores, 1 + num_negatives):
        return Rejected(sample_id, "no_scores", f"wants {1 + num_negatives} numbers in [0, 1]")
    return None


def _are_scores(scores: Sequence[Any], count: int) -> bool:
    return len(scores) >= count and all(isinstance(score, int | float) and 0 <= score <= 1 for score in scores[:count])


def _mapped(row: dict[str, Any], num_negatives: int, source: str) -> dict[str, Any]:
    sample = to_sample(row)
    return {name: row[name] for name in REQUIRED} | {
        "source": source,
        "id": str(row["id"]),
        "negatives": row["negatives"][:num_negatives] if row["negatives"] else [],
        "task": sample.task,
        "scores": list(sample.scores[: 1 + num_negatives]),
        "modality_combination": sample.modality_combination,
        "positive_key": document_key(sample.positive),
    }


def _content(value: dict[str, Any] | None) -> Content:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where a struct of text and image is expected")
    value = value or {}
    image = value.get("image")
    if image is None:
        text = value.get("text")
        return Content(None if isinstance(text, str) and not text.strip() else text)
    if not image.get("bytes"):
        raise ValueError("a picture without bytes")
    return Content(value.get("text") or None, image["bytes"])


def count_by(values: Sequence[str]) -> dict[str, int]:
    names, counts = np.unique(np.asarray(values, dtype=object).astype(str), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
