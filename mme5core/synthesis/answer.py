"""Conversion of the teacher's answer to a training sample, or to the reason why it is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mme5core.asking.finish_reasons import ending_of
from mme5core.asking.json_in_text import read_json
from mme5core.asking.question import Retry
from mme5core.synthesis.comparable import comparable
from mme5core.synthesis.plan import PlannedSample
from mme5core.synthesis.prompts import CRITERIA
from mme5core.synthesis.scores import self_evaluation
from mme5core.synthesis.text_checks import wrong_language, wrong_language_of_one
from mme5core.synthesis.text_defects import defect_of, is_refusal
from mme5core.types import Content, ImageRef, Rejected, Sample

__all__ = ["Parsed", "parse_answer", "read_json", "self_evaluation"]

IMAGE_DOCUMENT_INSTRUCTION = "Represent the given image."
IMAGE_TEXT_DOCUMENT_INSTRUCTION = "Represent the given image together with its text:"

_IMAGE_TOKEN = re.compile(r"<\|?image[_a-z0-9]*\|?>|<\|vision_\w+\|>")
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_0-9]+\|>")
# Words that an instruction may have in common with a right answer without telling it.
_CHOICES = frozenset(("yes", "no", "true", "false"))
LEAST_TOLD = 3  # letters of a positive that an instruction can tell


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
    min_criterion_score: float | None = None,
) -> Parsed | Rejected | Retry:
    """The revised sample of one answer; the draft is never used.

    Args:
        images: the pictures of the plan by id.
        min_self_evaluation: lowest accepted mean of the teacher's scores of its own draft, in [1, 5]; None: any.
        min_criterion_score: lowest accepted score of each criterion, in [1, 5]; None: any.

    Returns:
        A sample, or a rejection (docs/synth.md lists the reasons), or, where the server broke the answer off for a
        reason of its own, that it must be asked for again.
    """
    ending = ending_of(finish_reason)
    if ending == "unknown":
        return Retry(f"the server ended the answer with {finish_reason!r}")
    if ending == "cut":
        return Rejected(plan.id, "cut_off", f"the answer ended after {len(text)} characters")
    if ending == "filtered" or not text.strip():
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
    return _checked(answer, revision, repaired, plan, images, num_negatives, (min_self_evaluation, min_criterion_score))


def _checked(
    answer: dict[str, Any],
    revision: dict[str, Any],
    repaired: bool,
    plan: PlannedSample,
    images: Mapping[str, ImageRef],
    num_negatives: int,
    lowest: tuple[float | None, float | None],
) -> Parsed | Rejected:
    """The sample of a revision, each of its fields judged as a text, then held against each other.

    Args:
        lowest: mean of the scores, and score of each criterion.
    """
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
    problem = _check_equality(revision, wanted, negative_texts, plan)
    problem = problem or _check_languages(revision["instruction"], texts, plan)
    problem = problem or _check_scores(answer, plan, *lowest)
    return problem or Parsed(_to_sample(revision, negative_texts, plan, images), repaired)


def _check_equality(
    revision: dict[str, Any], wanted: Sequence[str], negatives: Sequence[str], plan: PlannedSample
) -> Rejected | None:
    """A query that is its positive teaches nothing, and neither does one whose instruction tells the answer."""
    if "positive" not in wanted:
        return None
    positive = comparable(revision["positive"])
    if "query" in wanted and comparable(revision["query"]) == positive:
        return Rejected(plan.id, "query_equals_positive", revision["positive"][:80])
    instruction = f" {comparable(revision['instruction'])} "
    answer_words = _without_article(positive)
    is_told = sum(map(str.isalpha, answer_words)) >= LEAST_TOLD and f" {answer_words} " in instruction
    # One that lists what to choose from tells nothing.
    others = (_without_article(comparable(negative)) for negative in negatives)
    if is_told and answer_words not in _CHOICES and not any(f" {other} " in instruction for other in others):
        return Rejected(plan.id, "instruction_tells_answer", f"{revision['positive']!r}: {instruction.strip()!r}"[:160])
    return None


def _without_article(text: str) -> str:
    return re.sub(r"^(a|an|the) ", "", text)


def _check_languages(instruction: str, texts: list[str], plan: PlannedSample) -> Rejected | None:
    problem = wrong_language([instruction], "en")
    if problem:
        return Rejected(plan.id, "instruction_not_english", f"{problem}: {instruction[:80]!r}")
    problem = wrong_language(texts, plan.language)
    if problem:
        return Rejected(plan.id, "wrong_language", f"{plan.language} expected, {problem}: {' '.join(texts)[:80]!r}")
    for text in texts:
        problem = wrong_language_of_one(text, plan.language)
        if problem:
            return Rejected(plan.id, "wrong_language", f"{plan.language} expected, {problem}: {text[:80]!r}")
    return None


def _check_scores(
    answer: dict[str, Any], plan: PlannedSample, lowest_mean: float | None, lowest_each: float | None
) -> Rejected | None:
    if lowest_mean is None and lowest_each is None:
        return None
    scores = self_evaluation(answer)
    missing = [name for name in CRITERIA if name not in scores]
    if not scores:
        return Rejected(plan.id, "missing_field", "evaluation")
    if lowest_each is not None and missing:
        return Rejected(plan.id, "missing_field", f"evaluation.{missing[0]}")
    mean = sum(scores.values()) / len(scores)
    listed = ", ".join(f"{name} {score:g}" for name, score in scores.items())
    if lowest_mean is not None and mean < lowest_mean:
        return Rejected(plan.id, "low_self_evaluation", f"{mean:.2f} ({listed})")
    worst = min(scores, key=lambda name: scores[name])
    if lowest_each is not None and scores[worst] < lowest_each:
        return Rejected(plan.id, "low_self_evaluation", f"{worst} {scores[worst]:g} ({listed})")
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
    defect = defect_of(text)
    return Rejected(sample_id, defect[0], f"{field}: {defect[1]!r}") if defect else None


def _check_negatives(revision: dict[str, Any], plan: PlannedSample, num_negatives: int) -> list[str] | Rejected:
    negatives = revision.get("negatives")
    if not isinstance(negatives, list):
        return Rejected(plan.id, "missing_field", "negatives")
    for negative in negatives:
        problem = _check_text(negative, "negatives", plan.id)
        if problem:
            return problem
    distinct = list({comparable(negative): negative.strip() for negative in reversed(negatives)}.values())[::-1]
    # Documents with different pictures differ even if their texts are equal.
    if not plan.positive_image and comparable(revision["positive"]) in map(comparable, distinct):
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
