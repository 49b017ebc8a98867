"""The teacher's scores of its own draft, as numbers on one scale."""

from __future__ import annotations

import math
import re
from typing import Any

from mme5core.synthesis.prompts import CRITERIA, HIGHEST_SCORE, LOWEST_SCORE

OTHER_SCALE = 10  # that models fall back to, whatever they are asked for
_NUMBER = re.compile(r"^\D*(\d+(?:[.,]\d+)?)\s*(?:(?:/|out of|von|sur|de)\s*(\d+))?\D*$", re.IGNORECASE)


def self_evaluation(answer: Any) -> dict[str, float]:
    """The teacher's scores of its own draft by criterion, from 1 to 5; missing and unreadable ones are left out.

    An answer with a score above 5, or of ten, is on a scale of ten as a whole.

    >>> self_evaluation({"evaluation": {"relevance": {"score": "8/10"}, "clarity": {"score": 4}}})
    {'relevance': 4.0, 'clarity': 2.0}
    >>> self_evaluation({"evaluation": {"relevance": "4", "clarity": {"score": "good"}}})
    {'relevance': 4.0}
    """
    evaluation = answer.get("evaluation") if isinstance(answer, dict) else None
    if not isinstance(evaluation, dict):
        return {}
    read = {name: _read(evaluation.get(name)) for name in CRITERIA}
    scores = {name: score for name, score in read.items() if score is not None}
    is_of_ten = any(score > HIGHEST_SCORE or scale == OTHER_SCALE for score, scale in scores.values())
    factor, highest = (HIGHEST_SCORE / OTHER_SCALE, OTHER_SCALE) if is_of_ten else (1.0, HIGHEST_SCORE)
    return {name: factor * score for name, (score, _) in scores.items() if LOWEST_SCORE <= score <= highest}


def _read(judged: Any) -> tuple[float, int] | None:
    """(score, the scale that it names), of a number, a text with one, or an object with one."""
    score = judged.get("score") if isinstance(judged, dict) else judged
    if isinstance(score, bool):
        return None
    if isinstance(score, int | float):
        return (float(score), 0) if math.isfinite(score) and score <= OTHER_SCALE else None
    match = _NUMBER.match(score) if isinstance(score, str) and len(score) < 40 else None
    if match is None:
        return None
    number = float(match[1].replace(",", "."))
    return (number, int(match[2] or 0)) if number <= OTHER_SCALE else None
