"""Which of a query's ranked candidates become its neighbours: named rules of the papers, and what they are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Pool = Literal["any", "same", "other"]
Modality = Literal["any", "as_positive", "unlike_positive"]
OwnPicture = Literal["exclude", "allow", "force"]
OWN_PICTURE = "own_picture"
"""`source` of the row of a query's own picture, where it is forced."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A choice among candidates. Scores choose first, then ranks count by falling score, then the rest chooses.

    Args:
        name: stands in the column `source`.
        top_k: most neighbours of a query.
        min_rank, max_rank: ranks that are taken, both included.
        min_score, max_score: similarities that are taken, both included.
        relative_margin: a candidate must score at most the positive's score less this share of it (NV-Retriever,
            arXiv 2407.15831, with 0.05).
        absolute_margin: the same by a difference.
        pool: candidates whose pool (a column of both sets) is any, that of the query, or another.
        modality: candidates of any modality, of that of the query's positive, or of another.
        above_positive: only candidates that score higher than the positive.

    Raises:
        ValueError: bounds that nothing can satisfy.
    """

    name: str = "nearest"
    top_k: int = 50
    min_rank: int = 1
    max_rank: int | None = None
    min_score: float | None = None
    max_score: float | None = None
    relative_margin: float | None = None
    absolute_margin: float | None = None
    pool: Pool = "any"
    modality: Modality = "any"
    above_positive: bool = False

    def __post_init__(self) -> None:
        for name in ("min_score", "max_score", "relative_margin", "absolute_margin"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number, got {number}")
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise ValueError(f"max_rank={self.max_rank} is below min_rank={self.min_rank}")
        if self.min_score is not None and self.max_score is not None and self.max_score < self.min_score:
            raise ValueError(f"max_score={self.max_score} is below min_score={self.min_score}")

    @property
    def num_ranked(self) -> int:
        """How many candidates must be ranked for it."""
        return self.max_rank if self.max_rank is not None else self.min_rank - 1 + self.top_k

    @property
    def needs_positives(self) -> bool:
        margins = (self.relative_margin, self.absolute_margin)
        return self.above_positive or self.modality != "any" or any(margin is not None for margin in margins)


# Numbers that a paper does not give stay those of the plain rule.
NAMED: dict[str, dict[str, object]] = {
    # arXiv 2502.08468, app. B.2: the candidate of rank 70; its first released files hold five from there on.
    "mme5": {"min_rank": 70, "top_k": 5},
    # arXiv 2510.13515, eq. 1: the 50 highest below a similarity, which is not published: max_score.
    "unime-v2": {"top_k": 50},
    # arXiv 2412.14475: neighbours in a band of similarity.
    "megapairs": {"min_score": 0.8, "max_score": 0.96},
    # arXiv 2407.15831.
    "nv-retriever": {"relative_margin": 0.05},
    # arXiv 2411.02571: of the 50 nearest, those of the wrong modality above the positive ...
    "mm-embed-modality": {"max_rank": 50, "modality": "unlike_positive", "above_positive": True},
    # ... and those of the right one behind rank 45.
    "mm-embed-far": {"min_rank": 46, "max_rank": 50, "modality": "as_positive"},
}


def named_rules(names: list[str], plain: Rule) -> list[Rule]:
    """The named rules, their other numbers as in the plain one; without names the plain one.

    Raises:
        ValueError: an unknown name, for which the message lists those that exist, or one that is named twice.
    """
    for name in names:
        if name not in NAMED:
            raise ValueError(f"unknown rule {name!r}; known: {', '.join(NAMED)}")
        if names.count(name) > 1:
            raise ValueError(f"rule {name!r} is named twice")
    return [replace(plain, name=name, **NAMED[name]) for name in names] or [plain]  # type: ignore[arg-type]
