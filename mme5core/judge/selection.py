"""UniME-V2's choice of hard negatives among judged candidates (arXiv 2510.13515, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def select_negatives(
    scores: Sequence[float] | np.ndarray,
    *,
    positive_score: float,
    beta: float = 0.01,
    step: int = 5,
    count: int = 10,
) -> list[int]:
    """Places of the hard negatives among candidates in the order in which they were mined.

    Candidates that the judge scores above `positive_score - beta` may be positives, and are left out. Of the survivors
    the places 0, step, 2 step, ... are taken, then 1, 1 + step, ..., and so on: neighbours in the ranking are alike.
    The paper says "cyclical sampling with five-step intervals"; that it wraps to the next offset is our reading.

    Args:
        scores: of the judge, one for each candidate [C], in [0, 1].
        count: most negatives; there are fewer where fewer survive, none of them twice.

    Raises:
        ValueError: a score is not in [0, 1], or a number is out of its range.

    >>> select_negatives([0.1] * 12, positive_score=0.9, count=4)
    [0, 5, 10, 1]
    >>> select_negatives([0.95, 0.1, 0.89, 0.2], positive_score=0.9)
    [1, 2, 3]
    """
    if step < 1 or count < 0:
        raise ValueError(f"step must be at least 1 and count at least 0, got {step} and {count}")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be at least 0, got {beta}")
    for score in (positive_score, *scores):
        if not 0 <= score <= 1:  # NaN too
            raise ValueError(f"a judge's score is in [0, 1], got {score}")
    survivors = [place for place, score in enumerate(scores) if score <= positive_score - beta]
    return [place for offset in range(step) for place in survivors[offset::step]][:count]


def filled_as_published(
    chosen: Sequence[int], scores: Sequence[float] | np.ndarray, *, count: int, seed: int
) -> tuple[list[int], list[float]]:
    """Places and scores of `count` negatives, as UniME-V2's released data has them where fewer candidates survive.

    Those that survive are repeated. Where none does, candidates are drawn at random, each with the score 1.0: the soft
    labels then put nearly all of their mass on the negatives.

    >>> filled_as_published([2, 0], [0.1, 0.9, 0.2], count=5, seed=0)
    ([2, 0, 2, 0, 2], [0.2, 0.1, 0.2, 0.1, 0.2])
    """
    if chosen:
        places = [chosen[number % len(chosen)] for number in range(count)]
        return places, [float(scores[place]) for place in places]
    places = np.random.default_rng(seed).permutation(len(scores))[:count].tolist()
    return places, [1.0] * len(places)
