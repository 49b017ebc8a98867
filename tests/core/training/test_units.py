"""Units of distinct positives, against the slow and obvious way; repeats only where a positive is too frequent."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence

import pytest

from mme5core.training.units import joined, units_of


def slow_units(rows: list[int], keys: Sequence[Hashable], unit_rows: int) -> tuple[list[list[int]], list[int]]:
    """All units of distinct positives that can be filled, each of the first rows left; and the rows then left."""
    units = []
    while True:
        unit: list[int] = []
        for row in rows:
            if len(unit) < unit_rows and keys[row] not in [keys[other] for other in unit]:
                unit.append(row)
        if len(unit) < unit_rows:
            return units, rows
        units.append(unit)
        rows = [row for row in rows if row not in unit]


def slow_joined(units: list[list[int]], keys: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Batches of the first units that repeat no positive, whatever is left of each."""
    batches = []
    while units:
        batch: list[int] = []
        later = []
        for unit in units:
            is_fresh = not {keys[row] for row in unit} & {keys[row] for row in batch}
            if len(batch) + len(unit) <= batch_size and is_fresh:
                batch = batch + unit
            else:
                later.append(unit)
        batches.append(batch)
        units = later
    return batches


class Counted(Sequence[int]):
    """Keys that count how often they are looked at."""

    def __init__(self, keys: list[int]) -> None:
        self._keys, self.looks = keys, 0

    def __getitem__(self, row: int) -> int:  # type: ignore[override]
        self.looks += 1
        return self._keys[row]

    def __len__(self) -> int:
        return len(self._keys)


@pytest.mark.parametrize("seed", range(40))
def test_units_are_those_of_the_slow_way_and_the_rest_is_in_some_unit(seed: int) -> None:
    random_ = random.Random(seed)
    num_rows, num_keys = random_.randrange(200), random_.randrange(1, 90)
    keys = [min(random_.randrange(num_keys), random_.randrange(num_keys)) for _ in range(num_rows)]
    rows, unit_rows, round_to = random_.sample(range(num_rows), num_rows), random_.choice([4, 8, 24]), 4
    full, rest = slow_units(rows, keys, unit_rows)
    units = units_of(rows, keys, unit_rows=unit_rows, round_to=round_to)
    assert units[: len(full)] == full
    others = units[len(full) :]
    assert Counter(row for unit in others for row in unit) <= Counter(rest)
    assert all(len(unit) % round_to == 0 and len({keys[row] for row in unit}) > 1 for unit in others)
    if len({keys[row] for row in rest}) == len(rest):  # as ever: one smaller unit
        assert others == [rest[: len(rest) // round_to * round_to]] * (len(rest) >= round_to)
    elif len(others) and all(len(unit) == unit_rows for unit in others[:-1]):
        assert sum(map(len, others)) <= len(rest)


@pytest.mark.parametrize("seed", range(20))
def test_batches_of_several_units_are_those_of_the_slow_way_where_positives_can_be_kept_apart(seed: int) -> None:
    random_ = random.Random(seed)
    keys = [random_.randrange(2000) for _ in range(600)]
    units = units_of(range(600), keys, unit_rows=8, round_to=8)
    random_.shuffle(units)
    batches, slow = joined(units, keys, batch_size=32), slow_joined(units, keys, 32)
    assert [batch for batch in batches if len(batch) == 32][: len(slow) - 3] == slow[: len(slow) - 3]
    assert sorted(row for batch in batches for row in batch) == sorted(row for unit in units for row in unit)


@pytest.mark.parametrize("num_keys", [2, 24, 50_000])
def test_the_work_grows_with_the_rows_alone(num_keys: int) -> None:
    """Of distinct positives, of few, and of one that every second row has."""
    for frequent in (False, True):
        for num_rows in (2_000, 20_000):
            random_ = random.Random(0)
            numbers = [random_.randrange(num_keys) for _ in range(num_rows)]
            keys = Counted([0 if frequent and row % 2 else number for row, number in enumerate(numbers)])
            units = units_of(range(num_rows), keys, unit_rows=16, round_to=8)
            assert keys.looks <= 4 * num_rows
            joined(units, keys, batch_size=64)
            assert keys.looks <= 7 * num_rows


def test_two_labels_fill_whole_units_of_both() -> None:
    keys = ["yes", "no", "no", "no"] * 50
    units = units_of(range(200), keys, unit_rows=64, round_to=8)
    assert [len(unit) for unit in units] == [64, 64, 64, 8]
    assert len({row for unit in units for row in unit}) == 200
    for unit in units:
        counts = Counter(keys[row] for row in unit)
        assert abs(counts["yes"] - len(unit) / 4) <= 1


def test_units_of_few_labels_share_a_batch() -> None:
    keys = ["yes", "no"] * 100
    units = units_of(range(200), keys, unit_rows=16, round_to=8)
    batches = joined(units, keys, batch_size=64)
    assert [len(batch) for batch in batches] == [64, 64, 64, 8]
