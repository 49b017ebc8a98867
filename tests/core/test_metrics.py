"""Tests of the metrics against a slow ranking in plain Python and against values worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike

from mme5core.metrics import mrr, ndcg_at_k, precision_at_1, ranks, recall_at_k

Metric = Callable[[ArrayLike, ArrayLike], float]
METRICS: list[Metric] = [
    precision_at_1,
    mrr,
    lambda scores, positive: recall_at_k(scores, positive, 2),
    lambda scores, positive: ndcg_at_k(scores, positive, 2),
]


def slow_rank(scores: list[float], positive: int) -> int:
    return 1 + sum(1 for place, value in enumerate(scores) if place != positive and value >= scores[positive])


def with_ties(num_queries: int, num_candidates: int) -> tuple[list[list[float]], list[int]]:
    generator = np.random.default_rng(3)
    scores = generator.integers(-3, 4, (num_queries, num_candidates)) / 4
    return scores.tolist(), generator.integers(0, num_candidates, num_queries).tolist()


def test_ranks_are_those_of_the_slow_count() -> None:
    scores, positive = with_ties(40, 9)
    expected = [slow_rank(row, place) for row, place in zip(scores, positive, strict=True)]
    assert ranks(scores, positive).tolist() == expected
    assert len(set(expected)) > 4


@pytest.mark.parametrize("k", [1, 2, 5, 9, 100])
def test_metrics_are_the_means_over_slow_ranks(k: int) -> None:
    scores, positive = with_ties(40, 9)
    found = [slow_rank(row, place) for row, place in zip(scores, positive, strict=True)]
    gains = [1 / math.log2(1 + rank) if rank <= k else 0.0 for rank in found]
    assert recall_at_k(scores, positive, k) == pytest.approx(sum(rank <= k for rank in found) / 40)
    assert ndcg_at_k(scores, positive, k) == pytest.approx(sum(gains) / 40)
    assert mrr(scores, positive) == pytest.approx(sum(1 / rank for rank in found) / 40)
    assert precision_at_1(scores, positive) == recall_at_k(scores, positive, 1)


def test_a_hand_worked_example() -> None:
    # The positives come first, third and, after a tie, second.
    scores = [[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.7, 0.7, 0.1]]
    positive = [0, 2, 1]
    assert precision_at_1(scores, positive) == pytest.approx(1 / 3)
    assert recall_at_k(scores, positive, 2) == pytest.approx(2 / 3)
    assert mrr(scores, positive) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert ndcg_at_k(scores, positive, 2) == pytest.approx((1 + 0 + 1 / math.log2(3)) / 3)


def test_a_collapsed_model_scores_0_and_its_mrr_is_that_of_the_last_place() -> None:
    scores, positive = np.ones((20, 20)), np.arange(20)
    assert precision_at_1(scores, positive) == recall_at_k(scores, positive, 10) == ndcg_at_k(scores, positive, 10) == 0
    assert mrr(scores, positive) == pytest.approx(1 / 20)


def test_a_perfect_model_scores_1() -> None:
    assert [metric(np.eye(5), np.arange(5)) for metric in METRICS] == [1.0] * 4


def test_infinities_that_are_equal_tie() -> None:
    assert ranks([[np.inf, np.inf, 0.0], [-np.inf, 1.0, -np.inf]], [0, 2]).tolist() == [2, 3]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_nan_raises_wherever_it_stands(metric: Metric, place: tuple[int, int]) -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    scores[place] = np.nan
    with pytest.raises(ValueError, match="1 of 6 scores are NaN"):
        metric(scores, [1, 1])


@pytest.mark.parametrize("metric", METRICS)
def test_a_mean_over_no_queries_raises(metric: Metric) -> None:
    with pytest.raises(ValueError, match="no queries"):
        metric(np.zeros((0, 3)), [])


@pytest.mark.parametrize("positive", [[0], [0, 1, 2], [0, 3], [0, -1], [[0, 1]]])
def test_positives_that_do_not_fit_raise(positive: ArrayLike) -> None:
    with pytest.raises(ValueError, match="positive"):
        ranks(np.zeros((2, 3)), positive)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_1_raises(k: int) -> None:
    for metric in (recall_at_k, ndcg_at_k):
        with pytest.raises(ValueError, match=f"k must be >= 1, got {k}"):
            metric([[1.0, 0.0]], [0], k)
