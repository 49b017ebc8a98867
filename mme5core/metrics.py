"""Retrieval metrics with one relevant candidate per query: pure functions of scores.

rank = 1 + the number of other candidates that score at least as high as the positive. A tie is a miss, so that a
collapsed model, whose scores are all equal, is not mistaken for a perfect one.
Shapes: Q queries, C candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def ranks(scores_QC: ArrayLike, positive_Q: ArrayLike) -> NDArray[np.int64]:
    """Rank of each query's positive, from 1.

    >>> ranks([[0.9, 0.1, 0.3], [0.5, 0.5, 0.1]], [0, 1])
    array([1, 2])

    Raises:
        ValueError: NaN among the scores, or shapes or indices that do not fit.
    """
    scores = np.asarray(scores_QC)
    positive = np.asarray(positive_Q)
    if not positive.size:
        positive = positive.astype(np.int64)  # an empty list is float64 to NumPy
    if scores.ndim != 2 or positive.shape != scores.shape[:1]:
        raise ValueError(f"scores [Q, C] and positive [Q] do not fit: {scores.shape} and {positive.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN")
    if positive.size and (positive.min() < 0 or positive.max() >= scores.shape[1]):
        raise ValueError(f"positive must be in [0, {scores.shape[1]}), got {positive.min()} to {positive.max()}")
    own = scores[np.arange(len(positive)), positive]
    # The positive also counts itself, which is the "1 +".
    rank_Q: NDArray[np.int64] = (scores >= own[:, None]).sum(axis=1).astype(np.int64)
    return rank_Q


def recall_at_k(scores_QC: ArrayLike, positive_Q: ArrayLike, k: int) -> float:
    """Share of queries whose positive is among the first k; k may exceed C.

    >>> recall_at_k([[0.9, 0.1], [0.9, 0.1]], [0, 1], k=1)
    0.5
    """
    _check_k(k)
    return _mean(ranks(scores_QC, positive_Q) <= k)


def precision_at_1(scores_QC: ArrayLike, positive_Q: ArrayLike) -> float:
    """Share of queries whose positive is first: MMEB's Precision@1.

    >>> precision_at_1([[0.2, 0.2]], [0])
    0.0
    """
    return recall_at_k(scores_QC, positive_Q, 1)


def mrr(scores_QC: ArrayLike, positive_Q: ArrayLike) -> float:
    """Mean of 1 / rank, at any rank.

    >>> mrr([[0.9, 0.1], [0.9, 0.1]], [0, 1])
    0.75
    """
    return _mean(1.0 / ranks(scores_QC, positive_Q))


def ndcg_at_k(scores_QC: ArrayLike, positive_Q: ArrayLike, k: int) -> float:
    """Mean of 1 / log2(1 + rank) for ranks up to k, else 0; with one relevant candidate the ideal DCG is 1.

    >>> bool(ndcg_at_k([[0.9, 0.5, 0.1]], [1], k=10) == 1 / np.log2(3))
    True
    """
    _check_k(k)
    rank_Q = ranks(scores_QC, positive_Q)
    return _mean(np.where(rank_Q <= k, 1.0 / np.log2(1.0 + rank_Q), 0.0))


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")


def _mean(score_Q: NDArray[np.floating] | NDArray[np.bool_]) -> float:
    if not len(score_Q):
        raise ValueError("no queries")
    return float(np.mean(score_Q))
