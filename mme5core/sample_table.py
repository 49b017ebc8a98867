"""Training samples in one memory-mapped Arrow file, read by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mme5core.content_key import document_key
from mme5core.images import BadImage, load_rgb
from mme5core.prompt_styles import PICTURE_TOKENS
from mme5core.sample_readers import ours, read_samples
from mme5core.schemas import CONTENT_OF_SEVERAL
from mme5core.storage import AnyPath
from mme5core.types import Rejected, Sample

MAPPED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("instruction", pa.string()),
        ("document_instruction", pa.string()),
        ("query", CONTENT_OF_SEVERAL),
        ("positive", CONTENT_OF_SEVERAL),
        ("negatives", pa.list_(CONTENT_OF_SEVERAL)),
        ("task", pa.string()),
        ("scores", pa.list_(pa.float32())),
        ("modality_combination", pa.string()),
        ("positive_key", pa.binary(8)),
    ]
)
ROWS_PER_BATCH = 64


class SampleTable:
    """Samples by position, mapped from disk; only four small columns are in memory."""

    def __init__(self, file: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        self.combinations: list[str] = self._table["modality_combination"].to_pylist()
        self.positive_keys: list[bytes] = self._table["positive_key"].to_pylist()
        self.tasks: list[str] = self._table["task"].to_pylist()
        self.sources: list[str] = self._table["source"].to_pylist()

    def ids(self) -> pa.Array:
        """All ids, in their order."""
        return pa.concat_arrays(self._table["id"].chunks) if len(self) else pa.array([], pa.string())

    def id_of(self, position: int) -> str:
        return str(self._table["id"][position].as_py())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, position: int) -> Sample:
        return ours.to_sample(self._table.slice(position, 1).to_pylist()[0])


def map_samples(
    shards: Mapping[str, Sequence[AnyPath]],
    file: Path,
    *,
    num_negatives: int,
    limit: int | None,
    least_negatives: int | None = None,
    needs_scores: bool = False,
    images: str | None = None,
) -> Iterator[int | list[Rejected]]:
    """Write the usable samples to `file`; yields the number of rows read so far, and at last the refused ones.

    A sample is refused for fewer negatives than `least_negatives`, an empty content, a picture that cannot be decoded,
    a text that contains a picture token, a repeated id, a positive among its own negatives, or, with `needs_scores`, a
    missing score of the positive or a negative.

    Args:
        shards: files by source, in any format of `sample_readers`.
        num_negatives: most hard negatives of a sample that are kept, of its first ones.
        limit: most rows to read, over all files.
        least_negatives: None: as many as `num_negatives`.
        images: the folder that paths of pictures are relative to.
        needs_scores: the positive and each negative that is kept must have one in [0, 1].

    Raises:
        InputError: a file lacks the columns of a sample.
    """
    refused: list[Rejected] = []
    num_read = 0
    least = num_negatives if least_negatives is None else least_negatives
    temporary = file.with_name(f".{file.name}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, MAPPED) as writer:
        for source, files in shards.items():
            seen: set[str] = set()
            names = Counter(shard.name for shard in files)
            labels = [shard.name if names[shard.name] == 1 else f"{shard.parent.name}/{shard.name}" for shard in files]
            both = zip(files, labels, strict=True)
            rows = (row for shard, label in both for row in read_samples(shard, images, label=label))
            for batch in _batched(islice(rows, None if limit is None else limit - num_read)):
                num_read += len(batch)
                kept = []
                for row in batch:
                    checked = _check(row, num_negatives, least, seen, needs_scores)
                    if isinstance(checked, Rejected):
                        refused.append(checked)
                    else:
                        kept.append(_mapped(replace(checked, source=source), num_negatives))
                writer.write_table(pa.Table.from_pylist(kept, MAPPED))
                yield num_read
            yield num_read
    temporary.rename(file)
    yield refused


def _batched(rows: Iterable[Sample | Rejected]) -> Iterator[list[Sample | Rejected]]:
    remaining = iter(rows)
    while batch := list(islice(remaining, ROWS_PER_BATCH)):
        yield batch


def _check(
    row: Sample | Rejected, num_negatives: int, least_negatives: int, seen: set[str], needs_scores: bool
) -> Sample | Rejected:
    """The sample, or the reason why training cannot use it."""
    if row.id in seen:
        return Rejected(row.id, "duplicate_id")
    seen.add(row.id)
    if isinstance(row, Rejected):
        return row
    contents = (row.query, row.positive, *row.negatives)
    try:
        for image in (image for content in contents for image in content.images):
            load_rgb(image)
    except BadImage as error:
        return Rejected(row.id, error.reason, error.detail)
    except TypeError as error:
        return Rejected(row.id, "bad_content", str(error))
    texts = [content.text or "" for content in contents]
    for text in (*texts, row.instruction or "", row.document_instruction or ""):
        if any(token in text for token in PICTURE_TOKENS):
            return Rejected(row.id, "picture_token_in_text", text[:80])
    if len(row.negatives) < least_negatives:
        return Rejected(row.id, "too_few_negatives", f"{len(row.negatives)} of num_negatives={least_negatives}")
    if document_key(row.positive) in {document_key(negative) for negative in row.negatives[:num_negatives]}:
        return Rejected(row.id, "positive_among_negatives")
    num_scores = 1 + min(num_negatives, len(row.negatives))
    if needs_scores and not _are_scores(row.scores, num_scores):
        return Rejected(row.id, "no_scores", f"needs {num_scores} scores in [0, 1]")
    return row


def _are_scores(scores: Sequence[Any], count: int) -> bool:
    return len(scores) >= count and all(isinstance(score, int | float) and 0 <= score <= 1 for score in scores[:count])


def _mapped(sample: Sample, num_negatives: int) -> dict[str, Any]:
    kept = replace(sample, negatives=sample.negatives[:num_negatives])
    more = {"source": sample.source, "scores": list(sample.scores[: 1 + num_negatives])}
    return ours.to_row(kept) | more | {"positive_key": document_key(sample.positive)}


def count_by(labels: Sequence[str]) -> dict[str, int]:
    """How often each label occurs, sorted by label."""
    names, counts = np.unique(np.asarray(labels, dtype=object).astype(str), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
