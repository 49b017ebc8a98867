"""UniME-V2's rule: no candidate that may be a positive, and the survivors in cycles of five."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mme5core.judge import select_negatives


def test_survivors_are_taken_in_cycles() -> None:
    fifty = select_negatives(np.full(50, 0.2), positive_score=0.9)
    assert fifty == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    twelve = select_negatives([0.2] * 12, positive_score=0.9)
    assert twelve == [0, 5, 10, 1, 6, 11, 2, 7, 3, 8]


def test_the_cycle_goes_over_the_survivors_and_places_are_those_of_all() -> None:
    scores = [0.95, 0.1, 0.89, 0.2, 0.895, 0.3, 0.4]
    assert select_negatives(scores, positive_score=0.9, step=2) == [1, 3, 6, 2, 5]


def test_the_threshold_is_below_the_positives_own_score_and_belongs_to_the_survivors() -> None:
    assert select_negatives([0.5, 0.51, 0.49], positive_score=0.5, beta=0.0) == [0, 2]
    assert select_negatives([0.25, 0.26], positive_score=0.5, beta=0.25) == [0]


@pytest.mark.parametrize("step", [1, 2, 5, 100])
@pytest.mark.parametrize("num", [0, 1, 7, 60])
def test_none_is_taken_twice_and_fewer_survivors_are_fewer_negatives(num: int, step: int) -> None:
    scores = np.random.default_rng(num).uniform(size=num)
    chosen = select_negatives(scores, positive_score=0.6, step=step, count=10)
    survivors = {place for place, score in enumerate(scores) if score <= 0.59}
    assert len(chosen) == len(set(chosen)) == min(10, len(survivors)) and set(chosen) <= survivors


def test_a_positive_that_scores_lower_than_all_leaves_none() -> None:
    assert select_negatives([0.2, 0.3], positive_score=0.005) == []


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([0.1, float("nan")], {}, "a judge's score is in .0, 1., got nan"),
        ([1.5], {}, "got 1.5"),
        ([0.1], {"positive_score": -0.1}, "got -0.1"),
        ([0.1], {"step": 0}, "step must be at least 1 and count at least 0, got 0 and 10"),
        ([0.1], {"count": -1}, "got 5 and -1"),
        ([0.1], {"beta": -0.5}, "beta must be at least 0"),
    ],
)
def test_numbers_out_of_their_range_are_refused(scores: list[float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_negatives(scores, **({"positive_score": 0.9} | options))
