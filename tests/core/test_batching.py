"""Tests of batch plans: every row once, one modality a batch, budgets kept."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from mme5core.batching import deal_chunks, plan_batches


def random_rows(seed: int) -> tuple[list[int], list[bool]]:
    random_ = random.Random(seed)
    count = random_.randint(1, 60)
    return [random_.randint(1, 30) for _ in range(count)], [random_.random() < 0.4 for _ in range(count)]


@pytest.mark.parametrize("seed", range(8))
def test_every_row_is_in_one_batch_within_the_budgets_beside_its_own_modality(seed: int) -> None:
    lengths, has_image = random_rows(seed)
    batches = plan_batches(lengths, has_image, max_rows=5, max_batch_tokens=40)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= 5
        assert len(batch) * max(lengths[row] for row in batch) <= 40
        assert len({has_image[row] for row in batch}) == 1


@pytest.mark.parametrize("seed", range(8))
def test_a_batch_ends_only_where_one_more_row_would_not_have_fitted(seed: int) -> None:
    lengths, has_image = random_rows(seed)
    batches = plan_batches(lengths, has_image, max_rows=5, max_batch_tokens=40)
    for batch, following in itertools.pairwise(batches):
        row = following[0]
        too_wide = (len(batch) + 1) * lengths[row] > 40
        assert len(batch) == 5 or too_wide or has_image[row] != has_image[batch[0]]


@pytest.mark.parametrize("seed", range(8))
def test_rows_of_one_picture_share_a_batch_where_they_fit_in_one(seed: int) -> None:
    lengths, has_image = random_rows(seed)
    pictures = [(random.Random(seed + row).randint(0, 9),) for row in range(len(lengths))]
    batches = plan_batches(lengths, has_image, max_rows=5, max_batch_tokens=80, pictures=pictures, max_pictures=2)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    batch_of = {row: number for number, batch in enumerate(batches) for row in batch}
    for picture in set(pictures):
        rows = [row for row, key in enumerate(pictures) if key == picture and has_image[row]]
        if rows and len(rows) <= 5 and len(rows) * max(lengths[row] for row in rows) <= 80:
            assert len({batch_of[row] for row in rows}) == 1
    for batch in batches:
        assert len(batch) <= 5 and len(batch) * max(lengths[row] for row in batch) <= 80
        assert not has_image[batch[0]] or len({pictures[row] for row in batch}) <= 2


def test_a_limit_of_pictures_does_not_limit_texts() -> None:
    assert plan_batches([1] * 3, [False] * 3, max_rows=8, max_batch_tokens=99, max_pictures=1) == [[0, 1, 2]]
    assert plan_batches([1] * 3, [True] * 3, max_rows=8, max_batch_tokens=99, max_pictures=2) == [[0, 1], [2]]


def test_rows_of_other_kinds_never_meet_and_texts_come_first() -> None:
    kinds = [2, 0, 1, 2, 0, 1]
    assert plan_batches([3] * 6, kinds, max_rows=8, max_batch_tokens=99) == [[1, 4], [2, 5], [0, 3]]
    chunks = deal_chunks([3] * 6, kinds, max_rows=1, max_chunk_tokens=99, num_processes=2)
    assert [[(chunk.kind, chunk.rows) for chunk in own] for own in chunks] == [
        [(0, (1,)), (1, (2,)), (2, (0,))],
        [(0, (4,)), (1, (5,)), (2, (3,))],
    ]


def test_a_limit_of_pictures_counts_each_distinct_one_of_all_rows_once() -> None:
    pictures = ["ab", "bc", "ca", "de", "a", "abcd"]
    planned = plan_batches(
        [1, 2, 3, 4, 5, 6], [1] * 6, max_rows=8, max_batch_tokens=99, pictures=pictures, max_pictures=3
    )
    # a, b, c; then d, e with a; then a row that is above the limit alone.
    assert planned == [[0, 1, 2], [3, 4], [5]]


def test_rows_of_the_same_pictures_in_the_same_order_stay_together() -> None:
    planned = plan_batches([1, 5, 9], [1] * 3, max_rows=2, max_batch_tokens=99, pictures=["ab", "ba", "ab"])
    assert planned == [[1], [0, 2]]


def test_the_budget_counts_padding_and_not_true_tokens() -> None:
    # 1 + 1 + 6 tokens are 8, but padded to 6 they are 18.
    assert plan_batches([6, 1, 1], [False] * 3, max_rows=8, max_batch_tokens=10) == [[1, 2], [0]]


def test_a_row_above_the_budget_is_a_batch_of_its_own() -> None:
    assert plan_batches([3, 50, 3], [False] * 3, max_rows=8, max_batch_tokens=10) == [[0, 2], [1]]


def test_the_longest_text_and_the_shortest_picture_row_do_not_meet() -> None:
    assert plan_batches([4, 4], [True, False], max_rows=8, max_batch_tokens=100) == [[1], [0]]


def test_no_rows_are_no_batches() -> None:
    assert plan_batches([], [], max_rows=1, max_batch_tokens=1) == []


@pytest.mark.parametrize(("max_rows", "max_batch_tokens"), [(0, 5), (5, 0), (-1, 5)])
def test_a_budget_of_nothing_is_refused(max_rows: int, max_batch_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"got {max_rows} and {max_batch_tokens}"):
        plan_batches([1], [False], max_rows=max_rows, max_batch_tokens=max_batch_tokens)


def dealt(num_processes: int, *, num_rows: int = 37, seed: int = 0, max_rows: int = 5) -> tuple[Any, ...]:
    random_ = random.Random(seed)
    lengths = [random_.randint(1, 60) for _ in range(num_rows)]
    has_image = [random_.random() < 0.4 for _ in range(num_rows)]
    chunks = deal_chunks(lengths, has_image, max_rows=max_rows, max_chunk_tokens=150, num_processes=num_processes)
    return lengths, has_image, chunks


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_dealt_once_and_processes_stay_in_step(num_processes: int, seed: int) -> None:
    lengths, has_image, per_process = dealt(num_processes, seed=seed)
    rows = [row for chunks in per_process for chunk in chunks if chunk.weight for row in chunk.rows]
    assert sorted(rows) == list(range(len(lengths)))
    assert len({len(chunks) for chunks in per_process}) == 1
    for turn in zip(*per_process, strict=True):
        assert len({chunk.has_image for chunk in turn}) == 1
        assert all(has_image[row] == chunk.has_image for chunk in turn for row in chunk.rows)
        assert any(chunk.weight for chunk in turn)


def test_where_the_number_of_chunks_can_be_shared_they_are_those_of_one_process() -> None:
    lengths, has_image = [7] * 24, [place % 2 == 0 for place in range(24)]
    of = {
        num_processes: {
            (chunk.number, chunk.rows)
            for chunks in deal_chunks(lengths, has_image, max_rows=3, max_chunk_tokens=999, num_processes=num_processes)
            for chunk in chunks
        }
        for num_processes in (1, 2, 4)
    }
    assert of[1] == of[2] == of[4] and len(of[1]) == 8


def test_a_process_without_rows_repeats_one_for_nothing() -> None:
    per_process = deal_chunks([3, 4], [True, False], max_rows=8, max_chunk_tokens=99, num_processes=2)
    assert [[(chunk.rows, chunk.weight) for chunk in chunks] for chunks in per_process] == [
        [((1,), 1.0), ((0,), 1.0)],
        [((1,), 0.0), ((0,), 0.0)],
    ]


def test_the_work_is_balanced_by_tokens() -> None:
    lengths, _, per_process = dealt(4, num_rows=400, max_rows=4)
    work = [sum(lengths[row] for chunk in chunks for row in chunk.rows) for chunks in per_process]
    assert max(work) / (sum(work) / 4) < 1.05
