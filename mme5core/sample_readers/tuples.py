"""sentence-transformers' n-tuples: anchor, positive, negative_1, ..., negative_n."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from mme5core.images import image_bytes
from mme5core.schemas import IMAGE
from mme5core.types import Content, Sample


def schema_of(num_negatives: int, *, has_pictures: bool) -> pa.Schema:
    """Columns of texts; where there are pictures, of structs of a text and a picture, as the library's models of both
    take them."""
    kind = pa.struct([("text", pa.string()), ("image", IMAGE)]) if has_pictures else pa.string()
    names = ["anchor", "positive", *(f"negative_{number}" for number in range(1, num_negatives + 1))]
    return pa.schema([(name, kind) for name in names])


def to_row(sample: Sample, num_negatives: int, *, has_pictures: bool) -> dict[str, Any]:
    """
    Raises:
        ValueError: there are fewer negatives, a content has several pictures, or one where none is expected.
    """
    if len(sample.negatives) < num_negatives:
        raise ValueError(f"{len(sample.negatives)} of num_negatives={num_negatives}")
    contents = [(sample.query, sample.instruction), (sample.positive, sample.document_instruction)]
    contents += [(negative, sample.document_instruction) for negative in sample.negatives[:num_negatives]]
    names = schema_of(num_negatives, has_pictures=has_pictures).names
    cells = [_cell(content, instruction, has_pictures=has_pictures) for content, instruction in contents]
    return dict(zip(names, cells, strict=True))


def _cell(content: Content, instruction: str | None, *, has_pictures: bool) -> Any:
    if len(content.images) > 1:
        raise ValueError("the layout takes one picture a content")
    text = " ".join(part for part in (instruction, content.text) if part) or None
    if has_pictures:
        images = [{"bytes": image_bytes(image), "path": None} for image in content.images]
        return {"text": text, "image": images[0] if images else None}
    if content.images:
        raise ValueError("a picture where the columns hold texts")
    return text
