"""Text-to-image retrieval scores by language, and the rankings behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mme5core.evaluation.benchmark import Benchmark
from mme5core.metrics import ranks
from mme5core.types import EvalQuery, Rejected

KS = (1, 5, 10)
QUERIES_AT_ONCE = 1024
NUM_SHOWN = 5
NOT_RANKED = 2**31 - 1
"""The rank of a positive that is not in its query's list."""


@dataclass(frozen=True)
class Ranking:
    """One query, the rank of its positive, and the ids of the first candidates."""

    query: EvalQuery
    rank: int
    first_ids: list[str]


@dataclass(frozen=True)
class Scores:
    """`by_language` and `mean` hold recall@1, @5, @10 and mrr in [0, 1]; the mean is over languages."""

    by_language: dict[str, dict[str, float]]
    mean: dict[str, float]
    num_queries: int
    num_candidates: int
    rankings: list[Ranking] = field(default_factory=list)

    def as_json(self, *, model: str, benchmark: str) -> dict[str, Any]:
        return {
            "model": model,
            "benchmark": benchmark,
            "scores": self.by_language,
            "mean": self.mean,
            "num_queries": self.num_queries,
            "num_candidates": self.num_candidates,
        }


def score(benchmark: Benchmark, vectors: Mapping[str, np.ndarray]) -> tuple[Scores, list[Rejected]]:
    """Rank all candidates for every query by dot product, in float32.

    Args:
        vectors: unit vectors by query and candidate id.

    Returns:
        The scores, and the queries that could not be scored: `no_vector` or `positive_has_no_vector`.

    Raises:
        ValueError: no query can be scored, or a vector holds NaN.
    """
    candidate_ids = [candidate for candidate in benchmark.candidate_ids if candidate in vectors]
    place = {candidate: number for number, candidate in enumerate(candidate_ids)}
    refused, scored = [], []
    for query in benchmark.queries:
        if query.id not in vectors:
            refused.append(Rejected(query.id, "no_vector"))
        elif query.positive_id not in place:
            refused.append(Rejected(query.id, "positive_has_no_vector", query.positive_id))
        else:
            scored.append(query)
    if not scored:
        raise ValueError(f"no query of {benchmark.name!r} has both a vector and a positive with a vector")
    candidate_CD = np.stack([vectors[candidate] for candidate in candidate_ids]).astype(np.float32)
    rankings: list[Ranking] = []
    for start in range(0, len(scored), QUERIES_AT_ONCE):
        rankings += _rank(scored[start : start + QUERIES_AT_ONCE], vectors, candidate_CD, candidate_ids, place)
    return _summary(rankings, len(candidate_ids)), refused


def _summary(rankings: list[Ranking], num_candidates: int) -> Scores:
    by_language = _by_language(rankings)
    names = list(next(iter(by_language.values())))
    mean = {name: float(np.mean([scores[name] for scores in by_language.values()])) for name in names}
    return Scores(by_language, mean, len(rankings), num_candidates, rankings)


def score_rankings(benchmark: Benchmark, ranked: Mapping[str, Sequence[str]]) -> tuple[Scores, list[Rejected]]:
    """Scores of ranked lists. A positive that is not in its query's list counts as found nowhere.

    Args:
        ranked: candidates by query, best first.

    Returns:
        The scores, and the queries without a list: `no_ranking`.

    Raises:
        ValueError: no query has a list.
    """
    rankings, refused = [], list[Rejected]()
    for query in benchmark.queries:
        candidates = list(ranked.get(query.id, ()))
        if not candidates:
            refused.append(Rejected(query.id, "no_ranking"))
            continue
        is_there = query.positive_id in candidates
        rank = 1 + candidates.index(query.positive_id) if is_there else NOT_RANKED
        rankings.append(Ranking(query, rank, candidates[:NUM_SHOWN]))
    if not rankings:
        raise ValueError(f"no query of {benchmark.name!r} is among the rankings")
    return _summary(rankings, len(benchmark.candidate_ids)), refused


def _rank(
    queries: Sequence[EvalQuery],
    vectors: Mapping[str, np.ndarray],
    candidate_CD: np.ndarray,
    candidate_ids: Sequence[str],
    place: Mapping[str, int],
) -> list[Ranking]:
    query_QD = np.stack([vectors[query.id] for query in queries]).astype(np.float32)
    # Summed in float64, kept in float32: float32 sums of equal vectors differ by their place in the matrix, and
    # equal candidates would no longer tie.
    scores_QC = (query_QD.astype(np.float64) @ candidate_CD.T.astype(np.float64)).astype(np.float32)
    rank_Q = ranks(scores_QC, [place[query.positive_id] for query in queries])
    num_shown = min(NUM_SHOWN, scores_QC.shape[1])
    first_QK = np.argsort(-scores_QC, axis=1, kind="stable")[:, :num_shown]
    return [
        Ranking(query, int(rank), [candidate_ids[c] for c in first])
        for query, rank, first in zip(queries, rank_Q, first_QK, strict=True)
    ]


def _by_language(rankings: Sequence[Ranking]) -> dict[str, dict[str, float]]:
    ranks_of: dict[str, list[int]] = defaultdict(list)
    for ranking in rankings:
        ranks_of[ranking.query.language].append(ranking.rank)
    scores = {}
    for language in sorted(ranks_of):
        rank_Q = np.asarray(ranks_of[language])
        scores[language] = {f"recall@{k}": float(np.mean(rank_Q <= k)) for k in KS} | {
            "mrr": float(np.mean(np.where(rank_Q == NOT_RANKED, 0.0, 1.0 / rank_Q))),
        }
    return scores
