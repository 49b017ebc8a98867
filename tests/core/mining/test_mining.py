"""Mining is brute force with rules: ties by id, nothing of the query itself, and each paper's choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.errors import InputError
from mme5core.mining import neighbour_parts, query_block
from mme5core.mining.candidate_index import CandidateIndex
from mme5core.mining.rules import NAMED, Rule, named_rules
from mme5core.mining.vector_files import VectorFiles, check_distinct_ids
from tests.core.mining.vectors_on_disk import exact_vectors, mined, write

QUERIES, CANDIDATES = exact_vectors(23, 1), exact_vectors(150, 2)
QUERY_IDS = [f"q{n}" for n in range(23)]
CANDIDATE_IDS = [f"c{n}" for n in np.random.default_rng(3).permutation(150)]
SCORES = {
    query: dict(zip(CANDIDATE_IDS, (CANDIDATES @ vector).tolist(), strict=True))
    for query, vector in zip(QUERY_IDS, QUERIES, strict=True)
}


def ranked(query: str, keep: Callable[[str, float], bool] = lambda candidate, score: True) -> list[tuple[str, float]]:
    """(candidate, score) of those that are kept, by falling score, then by id."""
    return sorted(((c, s) for c, s in SCORES[query].items() if keep(c, s)), key=lambda entry: (-entry[1], entry[0]))


def of(rows: list[dict[str, Any]], query: str, source: str = "nearest") -> list[tuple[str, float]]:
    return [(r["candidate_id"], r["score"]) for r in rows if (r["query_id"], r["source"]) == (query, source)]


@pytest.fixture
def sets(tmp_path: Path) -> tuple[str, str]:
    return write(tmp_path / "q", QUERY_IDS, QUERIES), write(tmp_path / "c", CANDIDATE_IDS, CANDIDATES)


@pytest.mark.parametrize(("chunk_rows", "scores_at_once"), [(1 << 14, 1 << 24), (10, 30), (1, 1)])
@pytest.mark.parametrize("top_k", [1, 5, 400])
def test_neighbours_are_those_of_brute_force_however_the_work_is_cut(
    tmp_path: Path,
    sets: tuple[str, str],
    top_k: int,
    chunk_rows: int,
    scores_at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neighbour_parts, "CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(query_block, "SCORES_ON_CPU", scores_at_once)
    rows, refused, counts = mined(tmp_path / "out", *sets, Rule(top_k=top_k))
    assert not refused and counts == {"kept": 23, "rows": 23 * min(top_k, 150), "unusable": 0}
    for query in QUERY_IDS:
        assert of(rows, query) == ranked(query)[:top_k]
    assert [row["rank"] for row in rows[: min(top_k, 150)]] == list(range(1, min(top_k, 150) + 1))


def test_a_set_with_itself_gives_no_query_as_its_own_neighbour(tmp_path: Path) -> None:
    one = write(tmp_path / "c", CANDIDATE_IDS, CANDIDATES)
    rows, _, _ = mined(tmp_path / "out", one, one, Rule(top_k=3))
    assert len(rows) == 450 and all(row["query_id"] != row["candidate_id"] for row in rows)
    assert {row["rank"] for row in rows} == {1, 2, 3}


def key(text: str) -> bytes:
    return text.encode().rjust(16)


def test_equal_contents_are_no_neighbours_and_a_repeated_candidate_counts_once(tmp_path: Path) -> None:
    keys = [key("a"), key("b"), key("b"), key("c"), None]
    candidates = write(tmp_path / "c", ["1", "2", "3", "4", "5"], np.ones((5, 8), np.float32), content_key=keys)
    queries = write(
        tmp_path / "q", ["x", "y", "z"], np.ones((3, 8), np.float32), content_key=[key("a"), key("d"), None]
    )
    rows, _, _ = mined(tmp_path / "out", queries, candidates)
    names = {query: [row["candidate_id"] for row in rows if row["query_id"] == query] for query in "xyz"}
    assert names == {"x": ["2", "4", "5"], "y": ["1", "2", "4", "5"], "z": ["1", "2", "4", "5"]}


@pytest.mark.parametrize(
    ("own_picture", "expected"),
    [
        ("exclude", [("2", "nearest")]),
        ("allow", [("1", "nearest"), ("2", "nearest")]),
        ("force", [("2", "nearest"), ("1", "own_picture")]),
    ],
)
def test_the_own_picture_of_a_query_is_excluded_allowed_or_forced(
    tmp_path: Path, own_picture: str, expected: list[tuple[str, str]]
) -> None:
    vectors = np.eye(8, dtype=np.float32)[:2]
    candidates = write(tmp_path / "c", ["1", "2"], vectors, content_key=[key("p"), key("r")], num_files=1)
    queries = write(
        tmp_path / "q", ["x"], vectors[:1], content_key=[key("p + text")], picture_key=[key("p")], num_files=1
    )
    rows, _, _ = mined(tmp_path / "out", queries, candidates, own_picture=own_picture)
    assert [(row["candidate_id"], row["source"]) for row in rows] == expected
    assert rows[0]["rank"] == rows[-1]["rank"] - (own_picture == "allow") == 1


@pytest.mark.parametrize(
    ("rule", "keep", "ranks"),
    [
        (Rule(top_k=4, max_score=0.03), lambda score: score <= 0.03, slice(0, 4)),
        (Rule(top_k=4, min_score=0.02), lambda score: score >= 0.02, slice(0, 4)),
        (Rule(top_k=400, min_score=-0.02, max_score=0.02), lambda score: -0.02 <= score <= 0.02, slice(0, 400)),
        (Rule(top_k=3, min_rank=10), lambda score: True, slice(9, 12)),
        (Rule(top_k=50, min_rank=10, max_rank=14), lambda score: True, slice(9, 14)),
    ],
)
def test_bands_choose_before_ranks_and_windows_after(
    tmp_path: Path, sets: tuple[str, str], rule: Rule, keep: Callable[[float], bool], ranks: slice
) -> None:
    rows, refused, _ = mined(tmp_path / "out", *sets, rule)
    for query in QUERY_IDS:
        expected = ranked(query, lambda candidate, score: keep(score))[ranks]
        assert of(rows, query) == expected
        assert (query in refused) == (not expected)
    first = min((row["rank"] for row in rows), default=None)
    assert first == ranks.start + 1


def positives_file(folder: Path) -> tuple[Path, dict[str, str]]:
    """The third nearest is the positive of each query but two: one has none, one has an id that is in no corpus."""
    positive = {query: ranked(query)[2][0] for query in QUERY_IDS}
    positive["q4"] = "nowhere"
    del positive["q5"]
    file = folder / "positives.parquet"
    pq.write_table(pa.table({"query_id": list(positive), "candidate_id": list(positive.values())}), file)
    return file, positive


def test_positives_are_never_neighbours(tmp_path: Path, sets: tuple[str, str]) -> None:
    file, positive = positives_file(tmp_path)
    rows, refused, _ = mined(tmp_path / "out", *sets, positives=[file])
    assert not refused
    for query in QUERY_IDS:
        own = positive.get(query)
        assert of(rows, query) == ranked(query, lambda c, s: c != own)[:5]  # noqa: B023


@pytest.mark.parametrize(
    ("rule", "cap"),
    [
        (Rule(top_k=6, relative_margin=0.25), lambda score: score - 0.25 * abs(score)),
        (Rule(top_k=6, absolute_margin=0.0), lambda score: score),
        (Rule(top_k=6, absolute_margin=0.0625), lambda score: score - 0.0625),
    ],
)
def test_margins_refer_to_each_querys_positive_and_a_query_without_one_is_refused(
    tmp_path: Path, sets: tuple[str, str], rule: Rule, cap: Callable[[float], float]
) -> None:
    file, positive = positives_file(tmp_path)
    rows, refused, counts = mined(tmp_path / "out", *sets, rule, positives=[file])
    assert refused["q4"] == refused["q5"] == "no_positive"
    for query in set(QUERY_IDS) - {"q4", "q5"}:
        own = positive[query]
        most = cap(SCORES[query][own])
        assert of(rows, query) == ranked(query, lambda c, s: c != own and s <= most)[:6]  # noqa: B023
    assert counts["kept"] == 23 - len(refused)


@pytest.mark.parametrize("pool", ["same", "other"])
def test_pools_are_within_or_across_a_column(tmp_path: Path, pool: Any) -> None:
    pool_of = {candidate: "abc"[n % 3] if n % 10 else None for n, candidate in enumerate(CANDIDATE_IDS)}
    query_pool = {query: "ab"[n % 2] for n, query in enumerate(QUERY_IDS)}
    queries = write(tmp_path / "q", QUERY_IDS, QUERIES, dataset=list(query_pool.values()))
    candidates = write(tmp_path / "c", CANDIDATE_IDS, CANDIDATES, dataset=list(pool_of.values()))
    rows, _, _ = mined(tmp_path / "out", queries, candidates, Rule(top_k=5, pool=pool), pool="dataset")
    for query in QUERY_IDS:
        expected = ranked(query, lambda c, s: (pool_of[c] == query_pool[query]) == (pool == "same"))  # noqa: B023
        assert of(rows, query) == expected[:5]


def test_mm_embeds_two_classes_are_wrong_modality_above_the_positive_and_right_one_far_below(tmp_path: Path) -> None:
    modality = {candidate: ("T", "I", "IT")[n % 3] for n, candidate in enumerate(CANDIDATE_IDS)}
    queries = write(tmp_path / "q", QUERY_IDS, QUERIES)
    candidates = write(tmp_path / "c", CANDIDATE_IDS, CANDIDATES, modality=list(modality.values()))
    positive = {query: ranked(query)[30][0] for query in QUERY_IDS}
    file = tmp_path / "positives.parquet"
    pq.write_table(pa.table({"id": list(positive), "positive_id": list(positive.values())}), file)
    rules = named_rules(["mm-embed-modality", "mm-embed-far"], Rule())
    rows, _, _ = mined(tmp_path / "out", queries, candidates, *rules, positives=[file])
    for query in QUERY_IDS:
        own, wanted = positive[query], modality[positive[query]]
        near = ranked(query, lambda c, s: c != own)[:50]  # noqa: B023
        above = [(c, s) for c, s in near if s > SCORES[query][own] and modality[c] != wanted]
        far = [(c, s) for c, s in near[45:] if modality[c] == wanted]
        assert (of(rows, query, "mm-embed-modality"), of(rows, query, "mm-embed-far")) == (above, far)


def test_named_rules_keep_the_papers_numbers_and_take_the_others_from_the_plain_one() -> None:
    rules = named_rules(["mme5", "unime-v2", "megapairs"], Rule(top_k=9, max_score=0.9))
    assert [(r.name, r.top_k, r.min_rank, r.min_score, r.max_score) for r in rules] == [
        ("mme5", 5, 70, None, 0.9),
        ("unime-v2", 50, 1, None, 0.9),
        ("megapairs", 9, 1, 0.8, 0.96),
    ]
    with pytest.raises(ValueError, match="unknown rule 'mm5'; known: mme5, unime-v2"):
        named_rules(["mm5"], Rule())
    assert len(NAMED) == 6


def test_vectors_that_are_none_are_refused_as_queries_and_counted_as_candidates(tmp_path: Path) -> None:
    vectors: list[Any] = [np.ones(8, np.float32), None, np.full(8, np.nan, np.float32), np.ones(8, np.float32)]
    queries = write(tmp_path / "q", ["a", "b", "c", "d"], vectors, num_files=1)
    candidates = write(tmp_path / "c", ["1", "2", "3", "4"], vectors, num_files=1)
    rows, refused, counts = mined(tmp_path / "out", queries, candidates)
    assert refused == {"b": "no_vector", "c": "no_vector"}
    assert [(row["query_id"], row["candidate_id"]) for row in rows] == [("a", "1"), ("a", "4"), ("d", "1"), ("d", "4")]
    assert counts["unusable"] == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "vector": [[1.0]]}, "queries .* has no column 'embedding'; its columns are id, vector"),
        ({"id": ["a"], "embedding": ["x"]}, "column 'embedding' is of string, no lists of floating-point numbers"),
        (
            {"id": pa.array([], pa.string()), "embedding": pa.array([], pa.list_(pa.float32()))},
            "queries .*: no vectors",
        ),
    ],
)
def test_files_that_are_no_vectors_are_refused_by_name(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=message):
        VectorFiles.open([str(tmp_path)], "queries")


def test_vectors_of_several_widths_or_models_and_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a", ["a"], np.ones((1, 8), np.float32), num_files=1, model="one")
    write(tmp_path / "x" / "b", ["b"], np.ones((1, 8), np.float32), num_files=1, model="two")
    with pytest.raises(InputError, match=r"hold vectors of different models"):
        VectorFiles.open([str(tmp_path / "x")], "queries")
    write(tmp_path / "x" / "c", ["b"], np.ones((1, 4), np.float32), num_files=1, model="one")
    with pytest.raises(InputError, match=r"hold vectors of different widths"):
        VectorFiles.open([str(tmp_path / "x" / "a"), str(tmp_path / "x" / "c")], "queries")
    twice = VectorFiles.open([write(tmp_path / "t", ["b", "a", "b"], np.ones((3, 8), np.float32))], "queries")
    with pytest.raises(InputError, match="queries: two have the id 'b'"):
        check_distinct_ids(twice, 3, tmp_path)
    check_distinct_ids(twice, 2, tmp_path)
    with pytest.raises(InputError, match="candidates: two have the id 'b'"):
        mined(tmp_path / "out", str(tmp_path / "x" / "a"), str(tmp_path / "t"))


def test_ties_do_not_depend_on_where_files_and_row_groups_end(tmp_path: Path) -> None:
    # Vectors whose products are rounded: in products of other shapes, equal ones would get other last bits.
    random = np.random.default_rng(0)
    one, many = random.standard_normal((1, 384)).astype(np.float32), random.standard_normal((40, 384))
    queries = write(tmp_path / "q", [f"q{n}" for n in range(40)], many.astype(np.float32))
    folder = tmp_path / "c"
    folder.mkdir()
    ids = [f"c{n:04d}" for n in range(700)]
    table = pa.table({"id": ids, "embedding": list(np.repeat(one, 700, axis=0))})
    pq.write_table(table.slice(1), folder / "a.parquet")
    pq.write_table(table.slice(0, 1), folder / "b.parquet")
    rows, _, _ = mined(tmp_path / "out", queries, str(folder), Rule(top_k=3))
    assert all(row["candidate_id"] == f"c{row['rank'] - 1:04d}" for row in rows)


def test_products_that_are_no_numbers_cost_neither_their_chunk_nor_a_rank(tmp_path: Path) -> None:
    big = np.float32(3e38)
    candidates = np.array([[1, 0], [big, -big], [big, big], [2, 0]], np.float32)
    queries = write(tmp_path / "q", ["x"], np.full((1, 2), 2.0, np.float32), num_files=1)
    rows, _, _ = mined(tmp_path / "out", queries, write(tmp_path / "c", ["1", "nan", "inf", "2"], candidates))
    assert [(row["candidate_id"], row["rank"]) for row in rows] == [("2", 1), ("1", 2)]


def test_a_picture_alone_is_not_forced_as_its_own_neighbour(tmp_path: Path) -> None:
    keys = [key("p"), key("r")]
    one = write(tmp_path / "c", ["1", "2"], np.eye(8, dtype=np.float32)[:2], content_key=keys, picture_key=keys)
    rows, _, _ = mined(tmp_path / "out", one, one, own_picture="force")
    assert [(row["query_id"], row["candidate_id"], row["source"]) for row in rows] == [
        ("1", "2", "nearest"),
        ("2", "1", "nearest"),
    ]


def test_many_equal_contents_make_no_pair_of_each_query_with_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key("same")] * 300
    ids = [f"{n:03d}" for n in range(300)]
    one = write(tmp_path / "c", ids, exact_vectors(300, 5), content_key=keys, picture_key=keys)
    num_pairs: list[int] = []
    pairs_of = query_block.QueryBlock._pairs

    def noted(self: Any, table: pa.Table, is_repeated: np.ndarray) -> Any:
        excluded, pictures = pairs_of(self, table, is_repeated)
        num_pairs.append(len(excluded[0]) + len(pictures[0]))
        return excluded, pictures

    monkeypatch.setattr(query_block.QueryBlock, "_pairs", noted)
    rows, refused, _ = mined(tmp_path / "out", one, one)
    assert not rows and set(refused.values()) == {"no_neighbour"} and sum(num_pairs) <= 3 * 300


def test_a_positive_without_a_vector_does_not_hide_another(tmp_path: Path) -> None:
    vectors: list[Any] = [np.eye(8, dtype=np.float32)[0], None, np.eye(8, dtype=np.float32)[0] / 2]
    candidates = write(tmp_path / "c", ["p1", "p2", "n"], vectors, num_files=1)
    queries = write(tmp_path / "q", ["x"], np.eye(8, dtype=np.float32)[:1], num_files=1)
    pq.write_table(pa.table({"query_id": ["x", "x"], "candidate_id": ["p1", "p2"]}), tmp_path / "p.parquet")
    rule = Rule(relative_margin=0.05)
    rows, refused, _ = mined(tmp_path / "out", queries, candidates, rule, positives=[tmp_path / "p.parquet"])
    assert [row["candidate_id"] for row in rows] == ["n"] and not refused


def test_queries_without_a_pool_are_of_none(tmp_path: Path) -> None:
    queries = write(tmp_path / "q", ["a", "b"], np.ones((2, 8), np.float32), num_files=1, dataset=["x", None])
    candidates = write(tmp_path / "c", ["1", "2"], np.ones((2, 8), np.float32), num_files=1, dataset=["x", None])
    rows, refused, _ = mined(tmp_path / "out", queries, candidates, Rule(pool="same"), pool="dataset")
    assert [(row["query_id"], row["candidate_id"]) for row in rows] == [("a", "1")] and set(refused) == {"b"}


def test_files_without_a_vector_do_not_spoil_those_beside_them(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    files: dict[str, list[Any]] = {"a": [[], None], "b": [None, None], "c": [[1.0, 2.0], []]}
    for name, vectors in files.items():
        table = pa.table({"id": [f"{name}1", f"{name}2"], "embedding": pa.array(vectors, pa.list_(pa.float32()))})
        pq.write_table(table, tmp_path / "c" / f"{name}.parquet")
    queries = write(tmp_path / "q", ["x"], np.ones((1, 2), np.float32), num_files=1)
    rows, _, counts = mined(tmp_path / "out", queries, str(tmp_path / "c"))
    assert [row["candidate_id"] for row in rows] == ["c1"] and counts["unusable"] == 5


def unit(count: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]


def test_equal_vectors_tie_wherever_they_stand_in_a_small_set(tmp_path: Path) -> None:
    vectors = unit(5, 256, 1)
    vectors[4] = vectors[0]
    candidates = write(tmp_path / "c", ["b", "m1", "m2", "m3", "a"], vectors, num_files=1)
    queries = write(tmp_path / "q", [f"q{n}" for n in range(200)], unit(200, 256, 2))
    rows, _, _ = mined(tmp_path / "out", queries, candidates, Rule(top_k=5))
    rank = {(row["query_id"], row["candidate_id"]): row["rank"] for row in rows}
    assert all(rank[f"q{n}", "b"] == rank[f"q{n}", "a"] + 1 for n in range(200))


def test_a_copy_of_the_positive_is_not_above_it(tmp_path: Path) -> None:
    positives = unit(50, 256, 5)
    names = [f"p{n:02}" for n in range(50)]
    candidates = write(
        tmp_path / "c",
        [*names, *(f"copy{n:02}" for n in range(50))],
        np.concatenate([positives, positives]),
        modality=["T"] * 50 + ["I"] * 50,
    )
    ids = [f"q{n}" for n in range(50)]
    queries = write(tmp_path / "q", ids, unit(50, 256, 6))
    pq.write_table(pa.table({"query_id": ids, "candidate_id": names}), tmp_path / "p.parquet")
    rules = [*named_rules(["mm-embed-modality"], Rule()), Rule(top_k=200, absolute_margin=0.0)]
    rows, _, _ = mined(tmp_path / "out", queries, candidates, *rules, positives=[tmp_path / "p.parquet"])
    copies = {
        (row["query_id"], row["source"]) for row in rows if row["candidate_id"] == f"copy{int(row['query_id'][1:]):02}"
    }
    assert copies == {(query, "nearest") for query in ids}


def test_files_of_other_list_types_and_pools_of_other_types_belong_together(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    kinds = [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float16())]
    pools = [pa.array(["1"]), pa.array([1]), pa.array(["1"]).dictionary_encode(), pa.array([1], pa.int8())]
    for number, (kind, pool) in enumerate(zip(kinds, pools, strict=True)):
        vector = pa.array([np.array([1, 0.5], np.float16)], kind)
        table = pa.table({"id": [f"c{number}"], "embedding": vector, "pool": pool})
        pq.write_table(table, folder / f"{number}.parquet")
    queries = write(tmp_path / "q", ["x"], np.ones((1, 2), np.float32), num_files=1, pool=["1"])
    rows, _, _ = mined(tmp_path / "out", queries, str(folder), Rule(pool="same"), pool="pool")
    assert [(row["candidate_id"], row["score"]) for row in rows] == [(f"c{n}", 1.5) for n in range(4)]


def test_null_ids_are_nobodys(tmp_path: Path) -> None:
    ones: list[Any] = [None, "a", None]
    one = write(tmp_path / "c", ones, np.ones((3, 2), np.float32), num_files=1)
    queries = write(tmp_path / "q", [None, "x", None], np.ones((3, 2), np.float32), num_files=1)
    rows, refused, counts = mined(tmp_path / "out", queries, one)
    assert [(row["query_id"], row["candidate_id"]) for row in rows] == [("x", "a")]
    assert refused == {"": "no_id"} and counts["unusable"] == 2


def test_one_odd_row_does_not_decide_the_width(tmp_path: Path) -> None:
    vectors = [np.ones(2, np.float32), *np.ones((3, 4), np.float32)]
    queries = write(tmp_path / "q", ["odd", "a", "b", "c"], vectors, num_files=1)
    rows, refused, _ = mined(tmp_path / "out", queries, queries)
    assert refused == {"odd": "no_vector"} and {row["query_id"] for row in rows} == {"a", "b", "c"}


def test_more_ranks_than_candidates_take_no_more_memory(tmp_path: Path, sets: tuple[str, str]) -> None:
    rows, _, _ = mined(tmp_path / "out", *sets, Rule(top_k=10**12))
    assert len(rows) == 23 * 150


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pa.table([pa.array(["a"]), pa.array(["b"]), pa.array([[1.0]])], names=["id", "id", "embedding"]),
            "two columns are called 'id'",
        ),
        (
            pa.table({"id": pa.array([b"\xff\xfe"]).view(pa.string()), "embedding": [[1.0]]}),
            "column 'id': .*UTF8",
        ),
    ],
)
def test_columns_twice_and_ids_that_are_no_text_name_their_file(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet.*{message}"):
        check_distinct_ids(VectorFiles.open([str(tmp_path)], "queries"), 1, tmp_path)


@pytest.mark.parametrize("name", ["min_score", "max_score", "relative_margin", "absolute_margin"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_bounds_are_numbers(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        Rule(**{name: number})  # type: ignore[arg-type]


def test_the_jobs_own_output_below_its_input_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "v", ["a"], np.ones((1, 2), np.float32), num_files=1)
    (tmp_path / "v" / "near").mkdir()
    pq.write_table(pa.table({"query_id": ["a"]}), tmp_path / "v" / "near" / "part-00000.parquet")
    assert len(VectorFiles.open([str(tmp_path / "v")], "queries", without=str(tmp_path / "v" / "near"))) == 1


def test_a_modality_that_we_do_not_know_is_named_where_a_rule_looks_at_it(tmp_path: Path) -> None:
    candidates = write(tmp_path / "c", ["a", "b"], np.ones((2, 2), np.float32), num_files=1, modality=["T", "image"])
    index = CandidateIndex.write(VectorFiles.open([candidates], "candidates"), tmp_path / "index")
    with pytest.raises(InputError, match=r"1 have a modality other than T, I or IT, .*'mm-embed-far'.*'b'"):
        index.check_modalities("mm-embed-far")


def test_a_column_that_only_some_files_have_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "c" / "a", ["a"], np.ones((1, 2), np.float32), num_files=1, content_key=[key("k")])
    write(tmp_path / "c" / "b", ["b"], np.ones((1, 2), np.float32), num_files=1)
    write(tmp_path / "c" / "d", [], np.ones((0, 2), np.float32), num_files=1)
    files = VectorFiles.open([str(tmp_path / "c")], "candidates")
    assert not files.has(["content_key"])
    assert "b/part-00000.parquet has no content_key, so none is looked at" in capsys.readouterr().err
