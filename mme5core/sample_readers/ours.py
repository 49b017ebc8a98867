"""Our own training format: contents are structs of a text and pictures, as encoded bytes or paths."""

from __future__ import annotations

from typing import Any

from mme5core.images import image_bytes
from mme5core.sample_readers.sample_format import PictureFolder, Row, SampleFormat
from mme5core.types import Content, ImageRef, Sample


def to_sample(row: Row, pictures: PictureFolder | None = None) -> Sample:
    """One row as a sample.

    Args:
        pictures: the folder of pictures that are stored as a path without bytes.

    Raises:
        ValueError: a content has neither text nor picture, or a picture has no bytes.
        BadImage: a picture is not in `pictures`.
    """
    return Sample(
        row["id"],
        to_content(row["query"], pictures),
        to_content(row["positive"], pictures),
        tuple(to_content(negative, pictures) for negative in row["negatives"] or ()),
        row["instruction"],
        row["document_instruction"],
        row.get("source") or "",
        row.get("task") or "",
        tuple(row.get("scores") or ()),
    )


def to_content(struct: dict[str, Any] | None, pictures: PictureFolder | None = None) -> Content:
    """A content from `schemas.CONTENT` or `schemas.CONTENT_OF_SEVERAL`; without picture, a blank text counts as none.

    Raises:
        ValueError, BadImage: as `to_sample`; also if the struct has both `image` and `images`.
    """
    if struct is not None and not isinstance(struct, dict):
        raise ValueError(f"a {type(struct).__name__} where a struct of text and image is expected")
    struct = struct or {}
    text, image, images = struct.get("text"), struct.get("image"), struct.get("images") or []
    if image is not None and images:
        raise ValueError("a content has both image and images; give one of the two")
    if image is not None:
        images = [image]
    if not images:
        return Content(None if isinstance(text, str) and not text.strip() else text)
    return Content(text or None, images=[_picture(image, pictures) for image in images])


def to_struct(content: Content) -> dict[str, Any]:
    """A content as a struct of `schemas.CONTENT_OF_SEVERAL`, with its pictures as bytes.

    >>> to_struct(Content("a cat", b"JPEG"))
    {'text': 'a cat', 'image': {'bytes': b'JPEG', 'path': None}, 'images': None}
    """
    structs = [{"bytes": image_bytes(image), "path": None} for image in content.images]
    has_several = len(structs) > 1
    return {
        "text": content.text,
        "image": structs[0] if len(structs) == 1 else None,
        "images": structs if has_several else None,
    }


def to_row(sample: Sample) -> dict[str, Any]:
    """A sample as a row of our own format, but for its source and scores; its pictures as bytes."""
    return {
        "id": sample.id,
        "task": sample.task,
        "modality_combination": sample.modality_combination,
        "instruction": sample.instruction,
        "document_instruction": sample.document_instruction,
        "query": to_struct(sample.query),
        "positive": to_struct(sample.positive),
        "negatives": [to_struct(negative) for negative in sample.negatives],
    }


def _picture(struct: dict[str, Any], pictures: PictureFolder | None) -> ImageRef:
    if struct.get("bytes"):
        return struct["bytes"]
    if pictures is not None and struct.get("path"):
        return pictures.picture(struct["path"])
    raise ValueError("a picture without bytes")


FORMAT = SampleFormat(
    required=("id", "query", "positive", "negatives", "instruction", "document_instruction"),
    optional=("source", "task", "scores"),
    to_sample=to_sample,
)
