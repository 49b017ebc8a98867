"""Conversion of the teacher's answer to a training sample, or to the reason why it is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mme5core.synthesis.plan import PlannedSample
from mme5core.synthesis.prompts import CRITERIA, HIGHEST_SCORE, LOWEST_SCORE
from mme5core.synthesis.text_checks import is_refusal, leaked_label, wrong_language
from mme5core.types import Content, ImageRef, Rejected, Sample

IMAGE_DOCUMENT_INSTRUCTION = "Represent the given image."
IMAGE_TEXT_DOCUMENT_INSTRUCTION = "Represent the given image together with its text:"

_IMAGE_TOKEN = re.compile(r"<\|?image[_a-z0-9]*\|?>|<\|vision_\w+\|>")
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_0-9]+\|>")
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A sample, and whether the JSON of its answer had to be repaired."""

    sample: Sample
    repaired: bool


def parse_answer(
    text: str,
    finish_reason: str | None,
    plan: PlannedSample,
    images: Mapping[str, ImageRef],
    *,
    num_negatives: int,
    min_self_evaluation: float | None = None,
) -> Parsed | Rejected:
    """The revised sample of one answer; the draft is never used.

    Args:
        images: the pictures of the plan by id.
        min_self_evaluation: lowest accepted mean of the teacher's scores of its own draft, in [1, 5]; None: any.

    Returns:
        A sample, or a rejection: `cut_off`, `refusal`, `not_json`, `missing_field`, `empty_field`, `not_unicode`,
        `image_token`, `leaked_label`, `too_few_negatives`, `positive_equals_negative`, `instruction_not_english`,
        `wrong_language` or `low_self_evaluation`.
    """
    if finish_reason == "length":
        return Rejected(plan.id, "cut_off", f"the answer ended after {len(text)} characters")
    if finish_reason == "content_filter" or not text.strip():
        return Rejected(plan.id, "refusal", text.strip()[:80] or "the teacher gave no answer")
    try:
        answer, repaired = read_json(text)
    except ValueError as error:
        if is_refusal(text):
            return Rejected(plan.id, "refusal", text[:80])
        return Rejected(plan.id, "not_json", f"{error}: {text[:80]!r}")
    revision = answer.get("revision") if isinstance(answer, dict) else None
    if not isinstance(revision, dict):
        return Rejected(plan.id, "missing_field", "revision")
    query_has_text, document_has_text = "T" in plan.query_modality, "T" in plan.document_modality
    wanted = ["instruction"] + ["query"] * query_has_text + ["positive"] * document_has_text
    for field in wanted:
        problem = _check_text(revision.get(field), field, plan.id)
        if problem:
            return problem
    negative_texts: list[str] = []
    if document_has_text:
        checked = _check_negatives(revision, plan, num_negatives)
        if isinstance(checked, Rejected):
            return checked
        negative_texts = checked
    texts = [revision[field] for field in wanted[1:]] + negative_texts
    problem = _check_languages(revision["instruction"], texts, plan)
    problem = problem or _check_scores(answer, plan, min_self_evaluation)
    if problem:
        return problem
    return Parsed(_to_sample(revision, negative_texts, plan, images), repaired)


def read_json(text: str) -> tuple[Any, bool]:
    """The JSON of an answer, and whether it had to be repaired.

    It repairs the usual defects of servers without a schema: a Markdown fence or words around the object, and trailing
    commas.

    Raises:
        ValueError: the text contains no JSON object.

    >>> read_json('Here it is: ```json {"a": [1, 2,]} ``` Have fun!')
    ({'a': [1, 2]}, True)
    """
    try:
        try:
            return json.loads(text), False
        except ValueError:
            start, end = text.find("{"), text.rfind("}")
            if start < 0 or end < start:
                raise
            return json.loads(_TRAILING_COMMA.sub(r"\1", text[start : end + 1])), True
    except RecursionError:
        raise ValueError("nested too deeply") from None


def self_evaluation(answer: Any) -> dict[str, float]:
    """The teacher's scores of its own draft by criterion; missing and invalid scores are left out."""
    evaluation = answer.get("evaluation") if isinstance(answer, dict) else None
    scores = {}
    for name in CRITERIA:
        judged = evaluation.get(name) if isinstance(evaluation, dict) else None
        score = judged.get("score") if isinstance(judged, dict) else None
        if isinstance(score, bool) or not isinstance(score, int | float):
            continue
        if LOWEST_SCORE <= score <= HIGHEST_SCORE:
            scores[name] = float(score)
    return scores


def _check_languages(instruction: str, texts: list[str], plan: PlannedSample) -> Rejected | None:
    problem = wrong_language([instruction], "en")
    if problem:
        return Rejected(plan.id, "instruction_not_english", f"{problem}: {instruction[:80]!r}")
    problem = wrong_language(texts, plan.language)
    if problem:
        return Rejected(plan.id, "wrong_language", f"{plan.language} expected, {problem}: {' '.join(texts)[:80]!r}")
    return None


def _check_scores(answer: Any, plan: PlannedSample, lowest: float | None) -> Rejected | None:
    if lowest is None:
        return None
    scores = self_evaluation(answer)
    if not scores:
        return Rejected(plan.id, "missing_field", "evaluation")
    mean = sum(scores.values()) / len(scores)
    if mean < lowest:
        listed = ", ".join(f"{name} {score:g}" for name, score in scores.items())
        return Rejected(plan.id, "low_self_evaluation", f"{mean:.2f} ({listed})")
    return None


def _check_text(text: Any, field: str, sample_id: str) -> Rejected | None:
    if text is None:
        return Rejected(sample_id, "missing_field", field)
    if not isinstance(text, str) or not text.strip():
        return Rejected(sample_id, "empty_field", field)
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        return Rejected(sample_id, "not_unicode", field)
    # The model would read a picture token in a text as a picture.
    if _IMAGE_TOKEN.search(text) or _SPECIAL_TOKEN.search(text):
        return Rejected(sample_id, "image_token", f"{field}: {text[:80]!r}")
    label = leaked_label(text)
    if label:
        return Rejected(sample_id, "leaked_label", f"{field}: {text[:80]!r}")
    return None


def _check_negatives(revision: dict[str, Any], plan: PlannedSample, num_negatives: int) -> list[str] | Rejected:
    negatives = revision.get("negatives")
    if not isinstance(negatives, list):
        return Rejected(plan.id, "missing_field", "negatives")
    for negative in negatives:
        problem = _check_text(negative, "negatives", plan.id)
        if problem:
            return problem
    distinct = list(dict.fromkeys(negative.strip() for negative in negatives))
    # Documents with different pictures differ even if their texts are equal.
    if not plan.positive_image and revision["positive"].strip().casefold() in {d.casefold() for d in distinct}:
        return Rejected(plan.id, "positive_equals_negative", revision["positive"][:80])
    if not plan.positive_image and len(distinct) < num_negatives:
        return Rejected(plan.id, "too_few_negatives", f"{len(distinct)} of {num_negatives}")
    if len(negatives) < num_negatives:
        return Rejected(plan.id, "too_few_negatives", f"{len(negatives)} of {num_negatives}")
    chosen = [negative.strip() for negative in negatives] if plan.positive_image else distinct
    return chosen[:num_negatives]


def _to_sample(
    revision: dict[str, Any],
    negative_texts: list[str],
    plan: PlannedSample,
    images: Mapping[str, ImageRef],
) -> Sample:
    def content(text: str | None, image_id: str | None) -> Content:
        return Content(text, images[image_id] if image_id else None)

    query_text = revision["query"].strip() if "T" in plan.query_modality else None
    query = content(query_text, plan.query_image)
    has_text, has_image = "T" in plan.document_modality, plan.positive_image is not None
    positive = content(revision["positive"].strip() if has_text else None, plan.positive_image)
    texts: list[str | None] = list(negative_texts) if has_text else [None] * len(plan.negative_images)
    pictures: list[str | None] = list(plan.negative_images) if has_image else [None] * len(texts)
    negatives = tuple(content(t, p) for t, p in zip(texts, pictures, strict=True))
    document_instruction = None
    if has_image:
        document_instruction = IMAGE_TEXT_DOCUMENT_INSTRUCTION if has_text else IMAGE_DOCUMENT_INSTRUCTION
    return Sample(plan.id, query, positive, negatives, revision["instruction"].strip(), document_instruction, "synth")
