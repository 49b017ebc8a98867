"""Tests of batch sampling: reproducible, one combination a batch, no positive twice, no row left out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from mme5core.training.sampling import BatchSampler


def epoch_of(sampler: BatchSampler, epoch: int) -> list[list[int]]:
    first, last = sampler.num_batches(epoch), sampler.num_batches(epoch + 1)
    return [sampler.batch(step) for step in range(first, last)]


def mixed(seed: int = 0) -> tuple[BatchSampler, list[str], list[int]]:
    combinations = ["I2T", "T2I", "IT2T"] * 30
    keys = [row % 23 for row in range(90)]
    return BatchSampler(combinations, keys, batch_size=8, seed=seed, round_to=4), combinations, keys


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_batch_has_one_combination_and_no_positive_twice(epoch: int) -> None:
    sampler, combinations, keys = mixed()
    for batch in epoch_of(sampler, epoch):
        assert len({combinations[row] for row in batch}) == 1
        assert len({keys[row] for row in batch}) == len(batch)


def test_batches_are_a_function_of_seed_and_step_alone() -> None:
    forwards, backwards = mixed()[0], mixed()[0]
    steps = list(range(forwards.num_batches(3)))
    assert [forwards.batch(s) for s in steps] == [backwards.batch(s) for s in reversed(steps)][::-1]
    assert [mixed(seed=1)[0].batch(s) for s in steps] != [forwards.batch(s) for s in steps]


def test_epochs_differ_in_their_order() -> None:
    sampler = mixed()[0]
    assert epoch_of(sampler, 0) != epoch_of(sampler, 1)


def test_the_combinations_are_not_trained_one_after_the_other() -> None:
    sampler, combinations, _ = mixed()
    order = [combinations[batch[0]] for batch in epoch_of(sampler, 0)]
    assert order != sorted(order)


@pytest.mark.parametrize("num_rows", [32, 33, 37, 39])
def test_an_epoch_goes_through_every_row_once_but_for_less_than_a_multiple(num_rows: int) -> None:
    sampler = BatchSampler(["T2T"] * num_rows, range(num_rows), batch_size=8, seed=0, round_to=4)
    rows = [row for batch in epoch_of(sampler, 0) for row in batch]
    assert len(set(rows)) == len(rows) == num_rows // 4 * 4


@pytest.mark.parametrize("batch_size", [5, 10, 12])
def test_a_full_batch_is_full_whatever_smaller_ones_are_rounded_to(batch_size: int) -> None:
    sampler = BatchSampler(["T2T"] * 60, range(60), batch_size=batch_size, seed=0)
    assert [len(batch) for batch in epoch_of(sampler, 0)] == [batch_size] * (60 // batch_size)


@pytest.mark.parametrize("seed", range(6))
def test_what_waits_for_the_next_epoch_could_not_have_made_another_batch(seed: int) -> None:
    keys = [0, 0, 0, 0, 1, 2]
    sampler = BatchSampler(["T2T"] * len(keys), keys, batch_size=6, seed=seed, round_to=2)
    left = set(range(len(keys))) - {row for batch in epoch_of(sampler, 0) for row in batch}
    assert len({keys[row] for row in left}) < 2


def test_what_waited_is_another_row_in_another_epoch() -> None:
    sampler = BatchSampler(["T2T"] * 9, range(9), batch_size=8, seed=0)
    left = {next(iter(set(range(9)) - set(epoch_of(sampler, epoch)[0]))) for epoch in range(12)}
    assert len(left) > 1


def test_batches_are_counted_over_parts_of_epochs() -> None:
    sampler = BatchSampler(["T2T"] * 80, range(80), batch_size=8, seed=0)
    assert [sampler.num_batches(n) for n in (0, 0.3, 1, 1.5, 2)] == [0, 3, 10, 15, 20]


def test_rows_with_one_positive_are_no_batch() -> None:
    with pytest.raises(ValueError, match="5 rows have no 2 with distinct positives"):
        BatchSampler(["T2T"] * 5, ["same"] * 5, batch_size=2, seed=0)


def test_a_batch_of_one_row_has_no_negative_and_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be >= 2, got 1"):
        BatchSampler(["T2T"] * 5, range(5), batch_size=1, seed=0)


def from_sources(**options: Any) -> tuple[BatchSampler, list[str]]:
    sources = ["a"] * 80 + ["b"] * 40
    options = {"batch_size": 8, "seed": 0, "round_to": 4} | options
    return BatchSampler(["T2I", "I2T"] * 60, range(120), sources=sources, **options), sources


def test_a_batch_has_one_source() -> None:
    sampler, sources = from_sources()
    batches = epoch_of(sampler, 0)
    assert all(len({(sources[row], row % 2) for row in batch}) == 1 for batch in batches)
    assert sorted(row for batch in batches for row in batch) == list(range(120))


def test_weights_are_shares_of_the_batches_and_a_small_source_goes_round() -> None:
    sampler, sources = from_sources(weights={"a": 1, "b": 3})
    batches = [batch for epoch in range(40) for batch in epoch_of(sampler, epoch)]
    share = sum(sources[batch[0]] == "b" for batch in batches) / len(batches)
    assert len(batches) == 40 * len(epoch_of(from_sources()[0], 0))
    assert abs(share - 0.75) < 4 * (0.75 * 0.25 / len(batches)) ** 0.5
    counts = Counter(row for batch in batches for row in batch if sources[row] == "b")
    # Each round takes every row once, so that within an epoch no row comes twice more than another.
    assert set(counts) == set(range(80, 120)) and max(counts.values()) < 2 * min(counts.values())
    assert from_sources(weights={"a": 1, "b": 0})[0].batch(3) and not any(
        row >= 80 for batch in epoch_of(from_sources(weights={"a": 1, "b": 0})[0], 0) for row in batch
    )


def test_an_interleaved_batch_has_runs_of_one_source_and_combination_and_no_positive_twice() -> None:
    keys = [row % 31 for row in range(120)]
    sources = ["a"] * 80 + ["b"] * 40
    sampler = BatchSampler(["T2I", "I2T"] * 60, keys, batch_size=16, seed=0, sources=sources, interleave_rows=4)
    batches = epoch_of(sampler, 0)
    assert sorted(row for batch in batches for row in batch) == list(range(120))
    full = [batch for batch in batches if len(batch) == 16]
    assert len(full) >= 6
    for batch in batches:
        assert len({keys[row] for row in batch}) == len(batch)
        runs = [batch[start : start + 4] for start in range(0, len(batch), 4)]
        assert all(len({(sources[row], row % 2) for row in run}) == 1 for run in runs)
    assert any(len({(sources[row], row % 2) for row in batch}) > 2 for batch in full)


def test_weights_and_interleaving_are_functions_of_seed_and_step_alone() -> None:
    for options in ({"weights": {"a": 1, "b": 1}}, {"interleave_rows": 4}):
        one, other = from_sources(**options)[0], from_sources(**options)[0]
        assert [one.batch(step) for step in (30, 2, 17)] == [other.batch(step) for step in (30, 2, 17)]


def test_weights_that_fit_no_source_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a weight for 'c', which has no rows; sources with rows: \['a', 'b'\]"):
        from_sources(weights={"a": 1, "c": 1})
    with pytest.raises(ValueError, match="weights must be >= 0"):
        from_sources(weights={"a": -1, "b": 2})
    with pytest.raises(ValueError, match="interleave_rows=3 does not divide batch_size=8"):
        from_sources(interleave_rows=3)


def test_the_sizes_of_an_epoch_are_those_of_its_batches() -> None:
    sampler = BatchSampler(["T2I"] * 24 + ["T2T"] * 29, range(53), batch_size=16, seed=0)
    assert sorted(sampler.epoch_sizes()) == [8, 8, 16, 16]
    assert sampler.epoch_sizes() == [len(sampler.batch(step)) for step in range(4)]


def test_two_labels_beside_a_source_of_distinct_positives_train_in_full_batches() -> None:
    keys = [*range(160), *(row % 2 for row in range(160, 320))]
    sources = ["pairs"] * 160 + ["labels"] * 160
    for weights in (None, {"pairs": 1, "labels": 1}):
        sampler = BatchSampler(["T2T"] * 320, keys, batch_size=32, seed=0, sources=sources, weights=weights)
        batches = epoch_of(sampler, 0)
        assert {len(batch) for batch in batches} == {32}
        of_labels = [batch for batch in batches if sources[batch[0]] == "labels"]
        assert of_labels and all({keys[row] for row in batch} == {0, 1} for batch in of_labels)
    assert sampler.rows_without_batch() == {}


def test_24_classes_fill_a_batch_of_many_more() -> None:
    sampler = BatchSampler(["I2T"] * 960, [row % 24 for row in range(960)], batch_size=384, seed=0)
    assert sorted(sampler.epoch_sizes()) == [192, 384, 384]
    assert sorted(row for batch in epoch_of(sampler, 0) for row in batch) == list(range(960))


def test_rows_that_no_batch_of_any_epoch_takes_are_named_with_the_reason() -> None:
    sources = ["a"] * 16 + ["b"] * 5 + ["c"] * 9
    keys = [*range(21), *[99] * 9]
    sampler = BatchSampler(["T2T"] * 30, keys, batch_size=8, seed=0, sources=sources)
    without = sampler.rows_without_batch()
    assert sorted(without) == list(range(16, 30))
    assert without[16].startswith("b has 5 samples of T2T with 5 distinct positives; a batch takes a multiple of 8")
    assert without[21].startswith("c has 9 samples of T2T with 1 distinct positives")
