"""Approximate search: with all lists it is the exact one; with few it finds most; exclusions hold either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mme5core.errors import InputError
from mme5core.mining.approximate import ApproximateIndex, check_faiss, default_factory
from mme5core.mining.candidate_index import CandidateIndex
from mme5core.mining.neighbour_parts import MineBlock
from mme5core.mining.rules import Rule
from mme5core.mining.vector_files import VectorFiles
from tests.core.mining.vectors_on_disk import write

pytest.importorskip("faiss")
Row = tuple[str, str, int, float]


def unit(count: int, seed: int) -> np.ndarray:
    """Vectors around some centres, as embeddings lie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(20, 32))
    vectors = centres[random.integers(20, size=count)] + random.normal(scale=0.4, size=(count, 32))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def key(number: int) -> bytes:
    return str(number).encode().rjust(16)


def mined(folder: Path, queries: str, candidates: str, rule: Rule, *, probed: int | None) -> list[Row]:
    """Rows of the exact search (None), or of one that looks into so many lists."""
    folder.mkdir()
    both = VectorFiles.open([queries], "queries"), VectorFiles.open([candidates], "candidates")
    index = CandidateIndex.write(both[1], folder / "candidates")
    approximate = None
    if probed is not None:
        approximate = ApproximateIndex.write(
            both[1], folder / "faiss", factory="IVF16,Flat", num_probed=probed, shortlist=4, seed=0
        )
    (folder / "parts").mkdir()
    task = MineBlock(*both, index, (rule,), "exclude", None, (), folder / "parts", 1, approximate)
    (report,) = task({"part": 0, "start": 0, "stop": len(both[0])})
    rows = pq.read_table(folder / "parts" / report["file"]["name"]).to_pylist()
    return [(row["query_id"], row["candidate_id"], row["rank"], row["score"]) for row in rows]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    candidates = unit(3000, 1)
    candidates[7] = candidates[8]  # a tie
    # Each query's content is that of a candidate near it; candidate 50 repeats the content of another.
    keys = [key(n) for n in range(3000)]
    keys[50] = keys[20]
    queries = candidates[:100] + 0.01 * unit(100, 2)
    return (
        write(folder / "q", [f"q{n}" for n in range(100)], queries, content_key=[key(n) for n in range(100)]),
        write(folder / "c", [f"c{n}" for n in range(3000)], candidates, content_key=keys),
    )


def test_with_all_lists_it_is_the_exact_search(sets: tuple[str, str], tmp_path: Path) -> None:
    rule = Rule(top_k=10, min_rank=2, max_score=0.97)
    exact = mined(tmp_path / "exact", *sets, rule, probed=None)
    approximate = mined(tmp_path / "all", *sets, rule, probed=16)
    assert [row[:3] for row in approximate] == [row[:3] for row in exact]
    np.testing.assert_allclose([row[3] for row in approximate], [row[3] for row in exact], atol=1e-6)
    assert not {(query, candidate) for query, candidate, *_ in approximate} & {(f"q{n}", f"c{n}") for n in range(100)}
    assert "c50" not in {candidate for _, candidate, *_ in approximate}


def test_contents_of_the_query_and_repeated_ones_are_no_neighbours(sets: tuple[str, str], tmp_path: Path) -> None:
    rows = mined(tmp_path / "all", *sets, Rule(top_k=5), probed=16)
    candidates = {query: {candidate for own, candidate, *_ in rows if own == query} for query in ("q3", "q20", "q50")}
    assert "c3" not in candidates["q3"]  # its own content, and the nearest
    assert "c50" not in candidates["q50"]  # the nearest too, and a copy of c20
    exact = mined(tmp_path / "exact", *sets, Rule(top_k=5), probed=None)
    assert [row[:3] for row in rows] == [row[:3] for row in exact]


def test_with_few_lists_it_finds_most(sets: tuple[str, str], tmp_path: Path) -> None:
    exact = {row[:2] for row in mined(tmp_path / "exact", *sets, Rule(top_k=10), probed=None)}
    approximate = {row[:2] for row in mined(tmp_path / "few", *sets, Rule(top_k=10), probed=2)}
    assert 0.5 < len(approximate & exact) / len(exact) < 1


def test_candidates_without_a_usable_vector_are_counted_and_few_ones_are_enough(tmp_path: Path) -> None:
    vectors = unit(10, 3)
    vectors[4] = np.nan
    candidates = VectorFiles.open([write(tmp_path / "c", [f"c{n}" for n in range(10)], vectors)], "candidates")
    index = ApproximateIndex.write(
        candidates, tmp_path / "faiss", factory=default_factory(10), num_probed=99, shortlist=4, seed=0
    )
    assert index.num_unusable == 1
    near = index.shortlisted(index.opened(1), vectors[:1], 9)
    assert 0 in near and len(near) >= 9


def test_an_index_that_faiss_does_not_know_is_refused() -> None:
    check_faiss(default_factory(1000), 32)
    with pytest.raises(InputError, match="FAISS makes no such index of width 32"):
        check_faiss("IFV7,Flat", 32)
