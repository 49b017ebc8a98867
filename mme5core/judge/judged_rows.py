"""From the scores of a sample's positive and candidates to a row with hard negatives, or a refusal."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mme5core.judge.selection import filled_as_published, select_negatives
from mme5core.judge.settings import SelectionSettings
from mme5core.sample_readers.ours import to_row
from mme5core.types import Content, Rejected, Sample

RIGHT = 0.5
"""A positive that scores lower is judged wrong."""
NO_CANDIDATE = "no neighbour of it is a candidate with a content of its own"


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """
    Args:
        seed: of the draws of `fill=published`.
    """

    selection: SelectionSettings
    seed: int

    def row(
        self,
        sample: Sample,
        candidates: Sequence[Content],
        candidate_ids: Sequence[str],
        scores: np.ndarray,
        counts: Counter[str],
    ) -> dict[str, Any] | Rejected:
        """A row of JUDGED.

        Args:
            scores: of the positive, then of the candidates; NaN of what the judge cannot be shown.
            counts: "wrong_positives" and "fewer" are counted.
        """
        rule, positive_score = self.selection, float(scores[0])
        if np.isnan(positive_score):
            return Rejected(sample.id, "unshown_positive", "the judge cannot be shown the query or its positive")
        counts["wrong_positives"] += positive_score < RIGHT
        if rule.min_positive_score is not None and positive_score < rule.min_positive_score:
            detail = f"its score is {positive_score:.4f}, below {rule.min_positive_score}"
            return Rejected(sample.id, "positive_judged_wrong", detail)
        shown = np.flatnonzero(~np.isnan(scores[1:]))
        own = scores[1:][shown]
        places = select_negatives(own, positive_score=positive_score, beta=rule.beta, step=rule.step, count=rule.count)
        counts["fewer"] += len(places) < rule.count
        of_places = [float(own[place]) for place in places]
        if rule.fill == "published" and len(places) < rule.count:
            seed = int.from_bytes(hashlib.sha256(f"{self.seed} {sample.id}".encode()).digest()[:8], "little")
            places, of_places = filled_as_published(places, own, count=rule.count, seed=seed)
        if not places:
            detail = f"all {len(own)} candidates score above {positive_score - rule.beta:.4f}"
            return Rejected(sample.id, "no_negative", detail)
        chosen = [int(shown[place]) for place in places]
        judged = replace(sample, negatives=tuple(candidates[place] for place in chosen))
        scored = {"scores": [positive_score, *of_places], "negative_ids": [candidate_ids[place] for place in chosen]}
        return to_row(judged) | scored
