"""Parquet files of texts and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.readers.cells import pictures_of, row_of_content, text_of
from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse
from mme5core.readers.mmeb import is_one as is_mmeb
from mme5core.readers.mmeb import read as read_mmeb
from mme5core.readers.parquet_rows import records_of
from mme5core.readers.texts import as_text
from mme5core.readers.training_samples import is_one as is_samples
from mme5core.readers.training_samples import read as read_samples
from mme5core.storage import AnyPath, parquet_file

# For each role, the first of these names that a file has, in upper or lower case.
ID_COLUMNS = ("id", "_id", "key", "docid", "sample_id")
TEXT_COLUMNS = ("text", "caption", "content")
IMAGE_COLUMNS = ("image", "jpg", "image_bytes", "image_path", "file_name")
IMAGES_COLUMNS = ("images",)  # lists of pictures, of contents that hold several
INSTRUCTION_COLUMNS = ("instruction",)
IMG2DATASET = ("key", "status", "error_message")
"""Columns of Parquet files of img2dataset, which hold the failed downloads too."""
Columns = dict[str, str | None]


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """Rows of one file; the id of a row without one is made of file and position."""
    file = parquet_file(shard)
    names = file.schema_arrow.names
    if is_mmeb(names):
        yield from read_mmeb(shard, options)
        return
    if is_samples(names):
        yield from read_samples(shard, options)
        return
    columns = choose_columns(names)
    wanted = [name for name in columns.values() if name]
    if not columns["text"] and not columns["image"] and not columns["images"]:
        known = ", ".join(TEXT_COLUMNS + IMAGE_COLUMNS + IMAGES_COLUMNS)
        yield refuse(options.name(shard), "no_content_column", f"none of the columns {known}")
        return
    wanted += [name for name in options.columns if name in names and name not in wanted]
    if twice := next((name for name in wanted if names.count(name) > 1), None):
        yield refuse(options.name(shard), "broken_shard", f"two columns are called {twice!r}")
        return
    for position, record in enumerate(records_of(file, wanted)):
        yield row_of(record, columns, shard, position, options)


def find_column(names: list[str], wanted: tuple[str, ...]) -> str | None:
    """The first of `wanted` that is among `names`, in upper or lower case.

    >>> find_column(["URL", "TEXT"], ("text", "caption"))
    'TEXT'
    """
    by_fold = {name.casefold(): name for name in reversed(names)}
    return next((by_fold[name] for name in wanted if name in by_fold), None)


def choose_columns(names: list[str]) -> Columns:
    """The column of each role. In BEIR's corpora, recognised by `_id`, the title is a part of the text."""
    columns = {
        "id": find_column(names, ID_COLUMNS),
        "text": find_column(names, TEXT_COLUMNS),
        "image": find_column(names, IMAGE_COLUMNS),
        "images": find_column(names, IMAGES_COLUMNS),
        "instruction": find_column(names, INSTRUCTION_COLUMNS),
    }
    has_title = columns["id"] == "_id" and columns["text"] is not None
    has_status = set(IMG2DATASET) <= set(names)
    return columns | {
        "title": find_column(names, ("title",)) if has_title else None,
        "status": "status" if has_status else None,
        "error": "error_message" if has_status else None,
    }


def row_of(record: dict[str, Any], columns: Columns, shard: AnyPath, position: int, options: ReadOptions) -> CorpusRow:
    """One record as a row; a record that cannot be one is refused with its id."""
    row_id = f"{options.name(shard)}:{position}"
    try:
        fields = {role: record.get(name) if name else None for role, name in columns.items()}
        if fields["id"] not in (None, "", b""):
            row_id = as_text(fields["id"])
        return _row_of(record, fields, row_id, shard, position, options)
    except BadImage as error:
        return refuse(row_id, error.reason, error.detail)
    except Exception as error:  # whatever a file holds, one row ends no job
        return refuse(row_id, "unreadable_row", f"{type(error).__name__}: {first_line(error)}")


def _row_of(
    record: dict[str, Any], fields: dict[str, Any], row_id: str, shard: AnyPath, position: int, options: ReadOptions
) -> CorpusRow:
    """
    Raises:
        BadImage: the row is refused for its reason.
    """
    if fields["status"] not in (None, "success"):
        raise BadImage(as_text(fields["status"]), as_text(fields["error"] or ""))
    text, instruction = text_of(fields["text"], "text"), text_of(fields["instruction"], "instruction")
    title = fields["title"]
    title = text_of(title if title is None or isinstance(title, str | bytes) else str(title), "title")
    if title:
        text = f"{title} {text or ''}".strip()
    pictures = pictures_of(fields["image"], fields["images"], shard, options)
    return row_of_content(row_id, text, pictures, instruction, position, options.source(record))
