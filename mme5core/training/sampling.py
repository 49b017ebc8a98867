"""The samples of each batch, as a function of (seed, step) alone."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from mme5core.training.units import joined, units_of

ROUND_TO = 8


class BatchSampler:
    """Batches of one source and one modality combination, with distinct positives as far as there are enough.

    Rows of one source have similar queries, which makes the other documents of a batch harder negatives. With one
    modality combination, all processes run the vision tower in the same steps. A second row with the same positive
    is no negative of the first, and the loss masks it: a batch of few labels has fewer negatives than rows.

    An epoch contains every row at most once. The last rows of a source and combination make a smaller batch of a
    multiple of `round_to` rows; fewer are left out until the next epoch's shuffle.

    Args:
        combinations: modality combination of each row.
        positive_keys: a key of each row's positive, equal for equal positives.
        batch_size: rows of a batch over all processes together.
        sources: the source of each row; None: all rows have the same one.
        weights: relative frequency with which a batch is drawn from each source. A source is then repeated as often as
            needed, in a new order each time, and an epoch has as many batches as without weights.
        interleave_rows: number of consecutive rows of a batch from the same source and combination; the next ones
            are from another, as in VLM2Vec (there 64). None: the whole batch.

    Raises:
        ValueError: no batch can be made, or the weights do not fit the sources.
    """

    def __init__(
        self,
        combinations: Sequence[str],
        positive_keys: Sequence[Hashable],
        *,
        batch_size: int,
        seed: int,
        round_to: int = ROUND_TO,
        sources: Sequence[str] | None = None,
        weights: Mapping[str, float] | None = None,
        interleave_rows: int | None = None,
    ) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size must be >= 2, got {batch_size}")
        if interleave_rows is not None and (interleave_rows < 1 or batch_size % interleave_rows):
            raise ValueError(f"interleave_rows={interleave_rows} does not divide batch_size={batch_size}")
        names = sources if sources is not None else [""] * len(combinations)
        self._rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row, (source, combination) in enumerate(zip(names, combinations, strict=True)):
            self._rows[source][combination].append(row)
        self._keys = positive_keys
        self._batch_size = batch_size
        self._unit_rows = interleave_rows or batch_size
        self._round_to = min(round_to, self._unit_rows)
        self._seed = seed
        self._weights = None if weights is None else self._check_weights(weights)
        self._epochs: list[list[list[int]]] = []
        if not self._epoch(0):
            raise ValueError(
                f"no batch: {len(combinations)} rows have no {self._round_to} with distinct positives in one source "
                "and modality combination"
            )

    def num_batches(self, num_epochs: float) -> int:
        """Number of batches in `num_epochs` epochs."""
        whole = int(num_epochs)
        count = sum(len(self._epoch(epoch)) for epoch in range(whole))
        return count + round((num_epochs - whole) * len(self._epoch(whole))) if num_epochs > whole else count

    def epoch_sizes(self) -> list[int]:
        """Rows of each batch of the first epoch."""
        return [len(batch) for batch in self._epoch(0)]

    def rows_without_batch(self) -> dict[int, str]:
        """The rows that no batch of any epoch can take, each with the reason.

        They are those of a source and modality combination with too few rows, or with one positive alone.
        """
        without: dict[int, str] = {}
        for source, by_combination in sorted(self._rows.items()):
            for combination, rows in sorted(by_combination.items()):
                if not units_of(rows, self._keys, unit_rows=self._unit_rows, round_to=self._round_to):
                    num_positives = len({self._keys[row] for row in rows})
                    reason = (
                        f"{source} has {len(rows)} samples of {combination} with {num_positives} distinct positives; "
                        f"a batch takes a multiple of {self._round_to} with two at least"
                    )
                    without |= dict.fromkeys(rows, reason)
        return without

    def batch(self, step: int) -> list[int]:
        """The rows of one step, in the order in which they are divided among processes."""
        epoch = 0
        while step >= len(self._epoch(epoch)):
            step -= len(self._epoch(epoch))
            epoch += 1
        return self._epoch(epoch)[step]

    def _epoch(self, epoch: int) -> list[list[int]]:
        while len(self._epochs) <= epoch:
            self._epochs.append(self._plan_epoch(len(self._epochs)))
        return self._epochs[epoch]

    def _check_weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        checked = {source: float(weights.get(source, 0)) for source in sorted(self._rows)}
        if unknown := sorted(weights.keys() - self._rows.keys()):
            raise ValueError(f"a weight for {unknown[0]!r}, which has no rows; sources with rows: {sorted(self._rows)}")
        if min(checked.values()) < 0 or not sum(checked.values()):
            raise ValueError(f"weights must be >= 0, and at least one > 0, got {checked}")
        return checked

    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        random_ = random.Random(f"{self._seed} {epoch}")
        units = [unit for source in sorted(self._rows) for unit in self._units(source, random_)]
        if self._weights is None:
            random_.shuffle(units)
        else:
            units = self._weighted(len(units), self._weights, random_)
        if self._unit_rows == self._batch_size:
            return units
        return joined(units, self._keys, batch_size=self._batch_size)

    def _units(self, source: str, random_: random.Random) -> list[list[int]]:
        """The rows of a source in units of one combination; no row twice."""
        units: list[list[int]] = []
        for combination in sorted(self._rows[source]):
            rows = list(self._rows[source][combination])
            random_.shuffle(rows)
            units += units_of(rows, self._keys, unit_rows=self._unit_rows, round_to=self._round_to)
        return units

    def _weighted(self, count: int, weights: Mapping[str, float], random_: random.Random) -> list[list[int]]:
        """`count` units from sources drawn by weight; a source that is used up starts again in a new order."""
        waiting: dict[str, list[list[int]]] = {source: [] for source in weights}
        units = []
        for source in random_.choices(list(weights), list(weights.values()), k=count):
            if not waiting[source]:
                waiting[source] = self._units(source, random_)
                random_.shuffle(waiting[source])
            if waiting[source]:  # a source of fewer rows than `round_to` has none
                units.append(waiting[source].pop())
        return units
