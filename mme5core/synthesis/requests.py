"""From a planned sample and its pictures to what the teacher is asked."""

from __future__ import annotations

from collections.abc import Mapping

from mme5core.images import load_rgb, to_jpeg
from mme5core.synthesis.plan import PlannedSample
from mme5core.synthesis.prompts import answer_schema, build_prompt, schema_in_words
from mme5core.synthesis.teacher import Request

_SENT_AS_THEY_ARE = (b"\xff\xd8\xff", b"\x89PNG")


def build_request(plan: PlannedSample, images: Mapping[str, bytes], *, num_negatives: int) -> Request:
    """One call: prompt, pictures in the plan's order, the form of the answer.

    Args:
        images: encoded bytes of the plan's pictures by id.
    """
    system, user = build_prompt(plan, num_negatives=num_negatives)
    shown = [sendable(images[image_id]) for image_id in plan.image_ids]
    return Request(system, user, shown, answer_schema(plan), schema_in_words(plan), plan.seed)


def sendable(data: bytes) -> bytes:
    """The picture as servers take it: JPEG, PNG and WebP as they are, what else there is (GIF, BMP, TIFF) as JPEG.

    Raises:
        BadImage: it cannot be read.
    """
    if data.startswith(_SENT_AS_THEY_ARE) or data[8:12] == b"WEBP":
        return data
    return to_jpeg(load_rgb(data), quality=95)
