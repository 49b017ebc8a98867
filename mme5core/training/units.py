"""Rows of one source and combination in units of distinct positives, and units in batches, in linear time."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Sequence
from heapq import heappop, heappush

Keys = Sequence[Hashable]
"""A key of each row's positive, equal for equal positives."""


def units_of(rows: Sequence[int], keys: Keys, *, unit_rows: int, round_to: int) -> list[list[int]]:
    """Units of `unit_rows` rows with distinct positives, each of the first rows that were left; then the rest.

    The rest has too few distinct positives for another such unit. If rounding leaves out fewer than `round_to` of its
    rows, it makes one smaller unit of distinct positives, of a multiple of `round_to` rows. Else positives repeat:
    each is spread evenly over units of `unit_rows` rows, of which the last is smaller. A unit of one positive alone
    would have no negatives and is left out.

    >>> units_of(range(6), "abcabd", unit_rows=3, round_to=1)
    [[0, 1, 2], [3, 4, 5]]
    >>> units_of(range(7), "aaaabba", unit_rows=4, round_to=2)
    [[0, 4, 1, 2], [3, 5]]
    """
    queue = _Queue(rows, keys)
    units = []
    while True:
        unit = queue.take(unit_rows)
        if len(unit) < unit_rows:
            break
        units.append(unit)
    whole = len(unit) // round_to * round_to
    if len(unit) + len(queue) - whole < round_to:
        return [*units, unit[:whole]] if whole else units
    rest = _spread(unit + queue.rest(), keys)
    for start in range(0, len(rest), unit_rows):
        part = rest[start : start + unit_rows]
        if len(part) < unit_rows:
            part = part[: len(part) // round_to * round_to]
        if len({keys[row] for row in part}) > 1:
            units.append(part)
    return units


def joined(units: Sequence[list[int]], keys: Keys, *, batch_size: int) -> list[list[int]]:
    """Batches of several units each, in their order.

    A unit that repeats a positive of the batch waits for a later one, unless the batch would not be filled otherwise,
    or so many units share a positive that they could never be kept apart.
    """
    often = Counter(key for unit in units for key in {keys[row] for row in unit})
    num_batches = sum(map(len, units)) / batch_size
    free = {key for key, count in often.items() if count > num_batches}
    distinct = {id(unit): {keys[row] for row in unit} - free for unit in units}
    waiting: list[list[int]] = []
    following = deque(units)
    batches = []
    while waiting or following:
        batch: list[int] = []
        used: set[Hashable] = set()
        later: list[list[int]] = []
        while (waiting or following) and len(batch) < batch_size:
            unit = waiting.pop() if waiting else following.popleft()
            if len(batch) + len(unit) <= batch_size and used.isdisjoint(distinct[id(unit)]):
                batch += unit
                used |= distinct[id(unit)]
            else:
                later.append(unit)
        left = later + waiting[::-1]
        if not following:
            left = _fill(batch, left, batch_size)
        waiting = left[::-1]
        batches.append(batch)
    return batches


def _fill(batch: list[int], units: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """Put the first units that fit into the batch, whatever positives they repeat; returns the others."""
    left = []
    for unit in units:
        if len(batch) + len(unit) <= batch_size:
            batch += unit
        else:
            left.append(unit)
    return left


class _Queue:
    """Rows in their order, of which units of distinct positives are taken.

    Rows whose positive was in the unit before them wait, by positive; of each the first is the next to be taken.
    """

    def __init__(self, rows: Sequence[int], keys: Keys) -> None:
        self._rows, self._keys = rows, keys
        self._place = 0  # of the first row that nobody has looked at
        self._waiting: dict[Hashable, deque[int]] = defaultdict(deque)
        self._first: list[int] = []  # a heap of the place of each waiting positive's first row
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting + len(self._rows) - self._place

    def take(self, count: int) -> list[int]:
        """The first rows with distinct positives, `count` or all that there are."""
        unit: list[int] = []
        taken = set()
        while self._first and len(unit) < count:
            place = heappop(self._first)
            key = self._keys[self._rows[place]]
            self._waiting[key].popleft()
            self._num_waiting -= 1
            taken.add(key)
            unit.append(self._rows[place])
        again = [key for key in taken if self._waiting[key]]
        while self._place < len(self._rows) and len(unit) < count:
            key = self._keys[self._rows[self._place]]
            if key in taken:
                if not self._waiting[key]:
                    again.append(key)
                self._waiting[key].append(self._place)
                self._num_waiting += 1
            else:
                taken.add(key)
                unit.append(self._rows[self._place])
            self._place += 1
        for key in again:
            heappush(self._first, self._waiting[key][0])
        return unit

    def rest(self) -> list[int]:
        """The rows that are left, in their order."""
        places = sorted(place for places in self._waiting.values() for place in places)
        return [self._rows[place] for place in (*places, *range(self._place, len(self._rows)))]


def _spread(rows: Sequence[int], keys: Keys) -> list[int]:
    """The rows in an order in which those of each positive lie evenly apart.

    >>> _spread(range(6), "aaaabb")
    [0, 4, 1, 2, 5, 3]
    """
    of_key: dict[Hashable, list[int]] = defaultdict(list)
    for row in rows:
        of_key[keys[row]].append(row)
    placed = [
        ((number + 0.5) / len(same), order, row)
        for order, same in enumerate(of_key.values())
        for number, row in enumerate(same)
    ]
    return [row for _, _, row in sorted(placed)]
