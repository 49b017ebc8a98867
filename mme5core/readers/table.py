"""Parquet files of texts and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mme5core.errors import first_line
from mme5core.images import BadImage, image_bytes
from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse, writable
from mme5core.readers.mmeb import is_one as is_mmeb
from mme5core.readers.mmeb import read as read_mmeb
from mme5core.storage import AnyPath, parquet_file

# For each role, the first of these names that a file has, in upper or lower case.
ID_COLUMNS = ("id", "_id", "key", "docid", "sample_id")
TEXT_COLUMNS = ("text", "caption", "content")
IMAGE_COLUMNS = ("image", "jpg", "image_bytes", "image_path")
IMAGES_COLUMNS = ("images",)  # lists of pictures, of contents that hold several
INSTRUCTION_COLUMNS = ("instruction",)
Columns = dict[str, str | None]


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """Rows of one file; the id of a row without one is made of file and position."""
    try:
        file = parquet_file(shard)
        if is_mmeb(file.schema_arrow.names):
            yield from read_mmeb(shard, options)
            return
        columns = choose_columns(file.schema_arrow.names)
        wanted = [name for name in columns.values() if name]
        if not columns["text"] and not columns["image"] and not columns["images"]:
            known = ", ".join(TEXT_COLUMNS + IMAGE_COLUMNS + IMAGES_COLUMNS)
            yield refuse(shard.name, "no_content_column", f"none of the columns {known}")
            return
        position = 0
        wanted += [name for name in options.columns if name in file.schema_arrow.names and name not in wanted]
        for batch in file.iter_batches(batch_size=256, columns=wanted):
            for record in batch.to_pylist():
                yield row_of(record, columns, shard, position, options)
                position += 1
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        yield refuse(shard.name, "broken_shard", first_line(error))


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
    return columns | {"title": find_column(names, ("title",)) if has_title else None}


def row_of(record: dict[str, Any], columns: Columns, shard: AnyPath, position: int, options: ReadOptions) -> CorpusRow:
    """One record as a row; a record that cannot be one is refused with its id."""
    fields = {role: record.get(name) if name else None for role, name in columns.items()}
    row_id = f"{options.label or shard.name}:{position}" if fields["id"] in (None, "") else writable(str(fields["id"]))
    text, instruction = fields["text"], fields["instruction"]
    if isinstance(fields["title"], str) and isinstance(text, str):
        text = f"{fields['title']} {text}".strip()
    if text is not None and not isinstance(text, str):
        return refuse(row_id, "text_not_a_string", type(text).__name__)
    if instruction is not None and not isinstance(instruction, str):
        return refuse(row_id, "instruction_not_a_string", type(instruction).__name__)
    if not is_unicode(text or "") or not is_unicode(instruction or ""):
        return refuse(row_id, "text_not_unicode", "a lone surrogate")
    try:
        pictures = _pictures(fields["image"], fields["images"], shard, options)
    except BadImage as error:
        return refuse(row_id, error.reason, error.detail)
    if not pictures and not (text or "").strip():
        return refuse(row_id, "empty_row", "neither text nor picture")
    return CorpusRow(
        row_id,
        text or None,
        pictures[0] if len(pictures) == 1 else None,
        instruction or None,
        offset=position,
        source=options.source(record),
        images=pictures if len(pictures) > 1 else (),
    )


def _pictures(image: Any, images: Any, shard: AnyPath, options: ReadOptions) -> tuple[bytes, ...]:
    """The pictures of a row, from its column of one picture or from that of lists.

    Raises:
        BadImage: a picture is missing, or both columns hold pictures.
    """
    if images in (None, []):
        one = image_of(image, shard, options)
        return () if one is None else (one,)
    if image not in (None, ""):
        raise BadImage("two_picture_columns", "a picture and a list of pictures in one row")
    if not isinstance(images, list):
        raise BadImage("not_an_image", f"a {type(images).__name__} where a list of pictures was expected")
    pictures = []
    for place, entry in enumerate(images):
        picture = image_of(entry, shard, options)
        if picture is None:
            raise BadImage("missing_image", f"picture {place} of {len(images)} is empty")
        pictures.append(picture)
    return tuple(pictures)


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_of(picture: Any, shard: AnyPath, options: ReadOptions) -> bytes | None:
    """The encoded bytes of a picture given as bytes, a Hugging Face image struct, a path or an address; None if empty.

    Raises:
        BadImage: it is of another type, or the file is missing.
    """
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    if picture is None or picture == "":
        return None
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str):
        return image_bytes(options.picture_path(picture, shard))
    raise BadImage("not_an_image", f"a {type(picture).__name__} where bytes or a path were expected")
