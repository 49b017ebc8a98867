"""Parquet files of texts and pictures, one row each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mme5core.images import BadImage, image_bytes
from mme5core.readers.corpus_row import CorpusRow, refuse, writable
from mme5core.storage import AnyPath, parquet_file

# The first of each that a file has is taken, in any case.
ID_COLUMNS = ("id", "_id", "key", "docid", "sample_id")
TEXT_COLUMNS = ("text", "caption", "content")
IMAGE_COLUMNS = ("image", "jpg", "image_bytes", "image_path")
INSTRUCTION_COLUMNS = ("instruction",)


def read(shard: AnyPath) -> Iterator[CorpusRow]:
    """Rows of one file; a row without id is named by file and position."""
    try:
        file = parquet_file(shard)
        columns = {
            role: find_column(file.schema_arrow.names, names)
            for role, names in (
                ("id", ID_COLUMNS),
                ("text", TEXT_COLUMNS),
                ("image", IMAGE_COLUMNS),
                ("instruction", INSTRUCTION_COLUMNS),
            )
        }
        wanted = [name for name in columns.values() if name]
        if not columns["text"] and not columns["image"]:
            known = ", ".join(TEXT_COLUMNS + IMAGE_COLUMNS)
            yield refuse(shard.name, "no_content_column", f"none of the columns {known}")
            return
        position = 0
        for batch in file.iter_batches(batch_size=256, columns=wanted):
            for record in batch.to_pylist():
                yield row_of(record, columns, shard, position)
                position += 1
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        yield refuse(shard.name, "broken_shard", str(error).splitlines()[0])


def find_column(names: list[str], wanted: tuple[str, ...]) -> str | None:
    """The first of `wanted` among `names`, upper or lower case.

    >>> find_column(["URL", "TEXT"], ("text", "caption"))
    'TEXT'
    """
    by_fold = {name.casefold(): name for name in reversed(names)}
    return next((by_fold[name] for name in wanted if name in by_fold), None)


def row_of(record: dict[str, Any], columns: dict[str, str | None], shard: AnyPath, position: int) -> CorpusRow:
    """One record as a row; what cannot be one is refused with its id."""
    values = {role: record.get(name) if name else None for role, name in columns.items()}
    row_id = f"{shard.name}:{position}" if values["id"] in (None, "") else writable(str(values["id"]))
    text, instruction = values["text"], values["instruction"]
    if text is not None and not isinstance(text, str):
        return refuse(row_id, "text_not_a_string", type(text).__name__)
    if instruction is not None and not isinstance(instruction, str):
        return refuse(row_id, "instruction_not_a_string", type(instruction).__name__)
    if not is_unicode(text or "") or not is_unicode(instruction or ""):
        return refuse(row_id, "text_not_unicode", "half a surrogate pair")
    try:
        image = _image(values["image"], shard.parent)
    except BadImage as error:
        return refuse(row_id, error.reason, error.detail)
    if image is None and not text:
        return refuse(row_id, "empty_row", "neither text nor picture")
    return CorpusRow(row_id, text or None, image, instruction or None)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _image(value: Any, folder: AnyPath) -> bytes | None:
    """Bytes, a Hugging Face image struct, or a path (relative to the file's folder)."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        return None
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return image_bytes(value) if "://" in value else image_bytes(str(folder / value))
    raise BadImage("not_an_image", f"a {type(value).__name__} where bytes or a path were expected")
