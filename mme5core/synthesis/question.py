"""mmE5's question to an MLLM: a planned sample and its pictures in, a training sample or a refusal out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mme5core.asking.question import Record, Retry
from mme5core.asking.request import Request, sendable
from mme5core.corpus.stored_pictures import StoredPictures
from mme5core.synthesis.answer import Parsed, parse_answer
from mme5core.synthesis.plan import PlannedSample
from mme5core.synthesis.planning import planned
from mme5core.synthesis.prompts import answer_schema, build_prompt, expected_completion_tokens, schema_in_words
from mme5core.types import Rejected


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A `Question` whose records are planned samples (`planning.PLAN`).

    Args:
        pictures: of the corpus.
        num_negatives: hard negatives that a sample must have.
        min_self_evaluation: lowest mean of the teacher's scores of its own draft; None: any.
        min_criterion_score: lowest score of each criterion; None: any.
        max_picture_side: pixels; pictures with a longer side are scaled down before they are sent; None: as they are.
    """

    pictures: StoredPictures
    num_negatives: int
    min_self_evaluation: float | None = None
    min_criterion_score: float | None = None
    max_picture_side: int | None = None

    def request(self, record: Record) -> Request:
        images = {place["id"]: self.pictures.read(place) for place in record["pictures"]}
        return build_request(
            planned(record), images, num_negatives=self.num_negatives, max_picture_side=self.max_picture_side
        )

    def verdict(self, answer: Mapping[str, Any], record: Record) -> list[Parsed] | Rejected | Retry:
        """One sample; its pictures are their ids, which stand for the bytes."""
        plan = planned(record)
        parsed = parse_answer(
            answer["text"],
            answer["finish_reason"],
            plan,
            {image_id: image_id for image_id in plan.image_ids},
            num_negatives=self.num_negatives,
            min_self_evaluation=self.min_self_evaluation,
            min_criterion_score=self.min_criterion_score,
        )
        return [parsed] if isinstance(parsed, Parsed) else parsed


def build_request(
    plan: PlannedSample, images: Mapping[str, bytes], *, num_negatives: int, max_picture_side: int | None = None
) -> Request:
    """One call: prompt, pictures in the plan's order, the form of the answer.

    Args:
        images: encoded bytes of the plan's pictures by id.

    Raises:
        BadImage: one cannot be shown.
    """
    system, user = build_prompt(plan, num_negatives=num_negatives)
    return Request(
        system,
        user,
        [sendable(images[image_id], max_picture_side) for image_id in plan.image_ids],
        answer_schema(plan),
        schema_in_words(plan),
        plan.seed,
        schema_name="sample",
        completion_tokens=expected_completion_tokens(len(plan.image_ids)),
    )
