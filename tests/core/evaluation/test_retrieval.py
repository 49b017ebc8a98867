"""Tests of retrieval scores by language against a slow ranking, and of both ends of the scale."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest

from mme5core.evaluation.benchmark import Benchmark
from mme5core.evaluation.retrieval import KS, NUM_SHOWN, QUERIES_AT_ONCE, Scores, score, score_rankings
from mme5core.types import Content, EvalQuery, Rejected

Vectors = dict[str, np.ndarray]


def benchmark_of(num_queries: int, num_candidates: int, languages: str = "it ru") -> Benchmark:
    codes = languages.split()
    ids = [f"c{number}" for number in range(num_candidates)]
    # Languages of different size: a mean over queries would be another number than the mean over languages.
    queries = [
        EvalQuery(f"q{n}", None, None, {ids[n * 7 % num_candidates]: 1.0}, language=codes[0] if n % 3 else codes[-1])
        for n in range(num_queries)
    ]
    return Benchmark("tiny", queries, ids, [Content(name) for name in ids])


def random_vectors(benchmark: Benchmark, width: int = 8) -> Vectors:
    generator = np.random.default_rng(0)
    names = [query.id for query in benchmark.queries] + benchmark.candidate_ids
    rows = generator.normal(size=(len(names), width))
    return dict(zip(names, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), strict=True))


def slow_scores(benchmark: Benchmark, vectors: Vectors) -> dict[str, dict[str, float]]:
    found: dict[str, list[int]] = defaultdict(list)
    for query in benchmark.queries:
        similarity = {name: float(vectors[query.id] @ vectors[name]) for name in benchmark.candidate_ids}
        own = similarity.pop(query.positive_id)
        found[query.language].append(1 + sum(value >= own for value in similarity.values()))
    return {
        language: {f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in KS}
        | {"mrr": sum(1 / rank for rank in ranks) / len(ranks)}
        for language, ranks in found.items()
    }


def test_scores_are_those_of_a_slow_ranking_by_language_and_their_mean_over_languages() -> None:
    benchmark = benchmark_of(60, 25)
    vectors = random_vectors(benchmark)
    found, refused = score(benchmark, vectors)
    expected = slow_scores(benchmark, vectors)
    assert refused == []
    assert found.by_language == {language: pytest.approx(values) for language, values in expected.items()}
    for name in ("recall@1", "recall@5", "recall@10", "mrr"):
        assert found.mean[name] == pytest.approx((expected["it"][name] + expected["ru"][name]) / 2)
    assert set(found.mean) == {"recall@1", "recall@5", "recall@10", "mrr"}
    assert (found.num_queries, found.num_candidates) == (60, 25)


def test_more_queries_than_are_ranked_at_once_lose_none() -> None:
    benchmark = benchmark_of(QUERIES_AT_ONCE + 3, 11)
    vectors = random_vectors(benchmark)
    found, _ = score(benchmark, vectors)
    assert [ranking.query for ranking in found.rankings] == benchmark.queries
    assert found.by_language["it"]["mrr"] == pytest.approx(slow_scores(benchmark, vectors)["it"]["mrr"])


def test_a_ranking_shows_its_first_candidates_in_order() -> None:
    benchmark = benchmark_of(9, 12)
    vectors = random_vectors(benchmark)
    for ranking in score(benchmark, vectors)[0].rankings:
        similarity = {name: -float(vectors[ranking.query.id] @ vectors[name]) for name in benchmark.candidate_ids}
        order = sorted(benchmark.candidate_ids, key=similarity.__getitem__)
        assert ranking.first_ids == order[:NUM_SHOWN]
        assert ranking.rank == 1 + order.index(ranking.query.positive_id)


def test_a_perfect_model_scores_1() -> None:
    benchmark = benchmark_of(12, 12)
    vectors: Vectors = dict(zip(benchmark.candidate_ids, np.eye(12, dtype=np.float32), strict=True))
    vectors |= {query.id: vectors[query.positive_id] for query in benchmark.queries}
    found, _ = score(benchmark, vectors)
    assert set(found.mean.values()) == {1.0}


@pytest.mark.parametrize("width", [4, 32, 384])
@pytest.mark.parametrize("num_candidates", [11, 12, 13, 33, 100])
@pytest.mark.parametrize("num_queries", [1, 3, 40])
def test_a_collapsed_model_scores_0(width: int, num_candidates: int, num_queries: int) -> None:
    direction = np.random.default_rng(0).normal(size=width)
    vector = (direction / np.linalg.norm(direction)).astype(np.float32)
    benchmark = benchmark_of(num_queries, num_candidates)
    names = [query.id for query in benchmark.queries] + benchmark.candidate_ids
    found, _ = score(benchmark, dict.fromkeys(names, vector))
    assert {ranking.rank for ranking in found.rankings} == {num_candidates}
    assert (found.mean["recall@1"], found.mean["recall@10"]) == (0, 0)
    assert found.mean["mrr"] == pytest.approx(1 / num_candidates)


@pytest.mark.parametrize("name", ["q1", "c1"])
def test_nan_in_any_vector_raises(name: str) -> None:
    benchmark = benchmark_of(4, 4)
    vectors = random_vectors(benchmark)
    vectors[name] = np.full(8, np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN"):
        score(benchmark, vectors)


def test_queries_that_cannot_be_scored_are_refused_with_the_reason_and_the_others_scored() -> None:
    benchmark = benchmark_of(4, 20)
    vectors = random_vectors(benchmark)
    del vectors["q0"], vectors[benchmark.queries[2].positive_id], vectors["c19"]
    found, refused = score(benchmark, vectors)
    assert refused == [
        Rejected("q0", "no_vector"),
        Rejected("q2", "positive_has_no_vector", benchmark.queries[2].positive_id),
    ]
    assert [ranking.query.id for ranking in found.rankings] == ["q1", "q3"]
    assert (found.num_queries, found.num_candidates) == (2, 18)


def test_where_nothing_can_be_scored_there_is_no_score() -> None:
    with pytest.raises(ValueError, match="no query of 'tiny'"):
        score(benchmark_of(3, 3), {})


def test_the_json_holds_what_the_design_fixes() -> None:
    scores = Scores({"it": {"recall@10": 0.5}}, {"recall@10": 0.5}, 2, 9)
    assert json.loads(json.dumps(scores.as_json(model="m", benchmark="b"))) == {
        "model": "m",
        "benchmark": "b",
        "scores": {"it": {"recall@10": 0.5}},
        "mean": {"recall@10": 0.5},
        "num_queries": 2,
        "num_candidates": 9,
    }


def test_rankings_are_scored_by_the_place_of_the_positive_and_one_that_is_missing_is_never_right() -> None:
    queries = [EvalQuery(name, Content(name), None, {f"p{name}": 1.0}, language="en") for name in "abcd"]
    benchmark = Benchmark("b", queries, ["pa", "pb", "pc", "pd"], [Content("x")] * 4)
    scores, refused = score_rankings(benchmark, {"a": ["pa", "x"], "b": ["x", "pb"], "c": ["x", "y"]})
    assert scores.mean == {"recall@1": 1 / 3, "recall@5": 2 / 3, "recall@10": 2 / 3, "mrr": 0.5}
    assert [rejected.reason for rejected in refused] == ["no_ranking"] and scores.num_queries == 3
    with pytest.raises(ValueError, match="no query of 'b' is among the rankings"):
        score_rankings(benchmark, {"other": ["pa"]})
