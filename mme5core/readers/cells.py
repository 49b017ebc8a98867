"""Cells of a table as texts and pictures, and the row that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.picture_formats import IMAGE_SUFFIXES
from mme5core.readers.corpus_row import CorpusRow, ReadOptions
from mme5core.readers.picture_places import Picture
from mme5core.storage import AnyPath

LONGEST_PATH = 4096


def text_of(field: Any, role: str) -> str | None:
    """A text column's entry; binary ones are UTF-8, as some writers leave the annotation out.

    Raises:
        BadImage: it is no text.
    """
    if isinstance(field, bytes):
        try:
            field = field.decode()
        except UnicodeDecodeError as error:
            raise BadImage("text_not_unicode", f"{role}: {first_line(error)}") from None
    if field is not None and not isinstance(field, str):
        raise BadImage(f"{role}_not_a_string", type(field).__name__)
    if not is_unicode(field or ""):
        raise BadImage("text_not_unicode", "a lone surrogate")
    return field


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_of(picture: Any, shard: AnyPath, options: ReadOptions) -> Picture | None:
    """A picture given as bytes, a Hugging Face image struct, a path, an address or base64; None if empty.

    Raises:
        BadImage: it is of another type, or it cannot be read.
    """
    if isinstance(picture, dict):
        data, path = picture.get("bytes"), picture.get("path")
        picture = path or data if data in (None, b"", "") else data
    if picture is None or picture == "":
        return None
    if picture == b"":
        raise BadImage("empty_image", "0 bytes")
    if isinstance(picture, bytes):
        path = _path_in(picture)
        return picture if path is None else options.picture(path, shard)
    if isinstance(picture, str):
        return options.picture(picture, shard)
    raise BadImage("not_an_image", f"a {type(picture).__name__} where bytes or a path were expected")


def _path_in(data: bytes) -> str | None:
    """A path in a binary column, whose writer left out the annotation of strings; None for a picture's bytes."""
    if len(data) > LONGEST_PATH or min(data) < 32:  # every picture has control characters
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if PurePosixPath(text).suffix.lower() in IMAGE_SUFFIXES or "://" in text else None


def pictures_of(image: Any, images: Any, shard: AnyPath, options: ReadOptions) -> tuple[Picture, ...]:
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


def row_of_content(
    row_id: str,
    text: str | None,
    pictures: Sequence[Picture],
    instruction: str | None,
    position: int,
    source: str | None,
) -> CorpusRow:
    """A row of a table.

    Raises:
        BadImage: it holds nothing.
    """
    if not pictures and not (text or "").strip():
        raise BadImage("empty_row", "neither text nor picture")
    return CorpusRow(
        row_id,
        text or None,
        pictures[0] if len(pictures) == 1 else None,
        instruction or None,
        offset=position,
        source=source,
        images=tuple(pictures) if len(pictures) > 1 else (),
    )
