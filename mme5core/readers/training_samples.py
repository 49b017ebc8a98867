"""Files of training samples as a corpus: their queries, or their positives, under the samples' ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.readers.cells import pictures_of, row_of_content, text_of
from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse
from mme5core.readers.parquet_rows import records_of
from mme5core.readers.texts import as_text
from mme5core.storage import AnyPath, parquet_file

_COLUMNS = {"id", "query", "positive", "negatives", "instruction", "document_instruction"}
_OF_SIDE = {"query": ("query", "instruction"), "target": ("positive", "document_instruction")}


def is_one(names: Sequence[str]) -> bool:
    """Whether a file with these columns holds training samples in our own format."""
    return set(names) >= _COLUMNS


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """The queries of a file (side=query), or its positives (side=target): both have the id of their sample."""
    if options.side not in _OF_SIDE:
        detail = "training samples have two sides of one id: side=query or side=target takes one"
        yield refuse(options.name(shard), "two_sides", detail)
        return
    content, instruction = _OF_SIDE[options.side]
    file = parquet_file(shard)
    own = ["id", content, instruction]
    more = [name for name in options.columns if name in file.schema_arrow.names and name not in own]
    for position, record in enumerate(records_of(file, [*own, *more])):
        row_id = f"{options.name(shard)}:{position}"
        try:
            if record["id"] not in (None, ""):
                row_id = as_text(record["id"])
            yield _row(record, record[content] or {}, record[instruction], row_id, position, shard, options)
        except BadImage as error:
            yield refuse(row_id, error.reason, error.detail)
        except Exception as error:  # whatever a file holds, one row ends no job
            yield refuse(row_id, "unreadable_row", f"{type(error).__name__}: {first_line(error)}")


def _row(
    record: dict[str, Any],
    content: dict[str, Any],
    instruction: Any,
    row_id: str,
    position: int,
    shard: AnyPath,
    options: ReadOptions,
) -> CorpusRow:
    pictures = pictures_of(content.get("image"), content.get("images"), shard, options)
    text = text_of(content.get("text"), "text")
    return row_of_content(row_id, text, pictures, text_of(instruction, "instruction"), position, options.source(record))
