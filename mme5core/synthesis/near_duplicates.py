"""Detection of samples that repeat an earlier sample of the same pictures."""

from __future__ import annotations

from collections import defaultdict

from mme5core.synthesis.comparable import comparable
from mme5core.synthesis.plan import PlannedSample
from mme5core.types import Rejected, Sample

GRAM = 3
_Grams = frozenset[str]


class Seen:
    """The samples so far. Only samples of the same pictures, language and modality combination are compared.

    Args:
        threshold: Jaccard similarity of character trigrams, in (0, 1], from which a sample counts as a duplicate; None:
            no sample does.
    """

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold
        self._known: dict[tuple[object, ...], list[tuple[str, str, _Grams]]] = defaultdict(list)

    def check(self, sample: Sample, plan: PlannedSample) -> Rejected | None:
        """A rejection, `duplicate_sample` or `near_duplicate_sample`, if the sample repeats an earlier one."""
        if self._threshold is None:
            return None
        parts = (sample.instruction, sample.query.text, sample.positive.text)
        text = comparable(" \n ".join(part or "" for part in parts))
        same_kind = (plan.modality_combination, plan.language, plan.query_image, plan.positive_image)
        grams = trigrams(text)
        for other_id, other_text, other_grams in self._known[same_kind]:
            if other_text == text:
                return Rejected(sample.id, "duplicate_sample", f"same text as {other_id}")
            shared = len(grams & other_grams) / max(1, len(grams | other_grams))
            if shared >= self._threshold:
                return Rejected(sample.id, "near_duplicate_sample", f"{shared:.0%} similar to {other_id}")
        self._known[same_kind].append((sample.id, text, grams))
        return None


def trigrams(text: str) -> _Grams:
    return frozenset(text[n : n + GRAM] for n in range(max(1, len(text) - GRAM + 1)))
