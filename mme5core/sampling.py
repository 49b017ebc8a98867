"""Which samples make a batch: a function of (seed, step) alone."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence

ROUND_TO = 8


class BatchSampler:
    """Batches of one modality combination each, in which no two rows have the same positive.

    Rows of one combination on all processes: otherwise some would run the vision tower in a step and others not,
    and their gradients would be exchanged in different orders. A second row with the same positive would be a
    negative of the first, and right.

    An epoch goes through every row once. What does not fill a batch goes into a smaller one, of a multiple of
    `round_to` rows; only what is left below that waits for the next epoch's shuffle.

    Args:
        combinations: modality combination of each row.
        positive_keys: equal where two rows have the same positive.
        batch_size: rows of a batch over all processes together.
    """

    def __init__(
        self,
        combinations: Sequence[str],
        positive_keys: Sequence[Hashable],
        *,
        batch_size: int,
        seed: int,
        round_to: int = ROUND_TO,
    ) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size must be >= 2, got {batch_size}")
        self._rows: dict[str, list[int]] = defaultdict(list)
        for row, combination in enumerate(combinations):
            self._rows[combination].append(row)
        self._keys = positive_keys
        self._batch_size = batch_size
        self._round_to = min(round_to, batch_size)
        self._seed = seed
        self._epochs: list[list[list[int]]] = []
        if not self._epoch(0):
            raise ValueError(f"no batch: {len(combinations)} rows give no {self._round_to} with distinct positives")

    def num_batches(self, num_epochs: float) -> int:
        """Batches in so many epochs."""
        whole = int(num_epochs)
        count = sum(len(self._epoch(epoch)) for epoch in range(whole))
        return count + round((num_epochs - whole) * len(self._epoch(whole))) if num_epochs > whole else count

    def batch(self, step: int) -> list[int]:
        """The rows of one step, in the order in which processes share them out."""
        epoch = 0
        while step >= len(self._epoch(epoch)):
            step -= len(self._epoch(epoch))
            epoch += 1
        return self._epoch(epoch)[step]

    def _epoch(self, epoch: int) -> list[list[int]]:
        while len(self._epochs) <= epoch:
            self._epochs.append(self._plan_epoch(len(self._epochs)))
        return self._epochs[epoch]

    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        random_ = random.Random(f"{self._seed} {epoch}")
        batches: list[list[int]] = []
        for combination in sorted(self._rows):
            rows = list(self._rows[combination])
            random_.shuffle(rows)
            while rows:
                batch, rows = self._take(rows)
                if len(batch) < self._batch_size:
                    whole = len(batch) // self._round_to * self._round_to
                    batch, rows = batch[:whole], batch[whole:] + rows
                if not batch:
                    break
                batches.append(batch)
        random_.shuffle(batches)
        return batches

    def _take(self, rows: list[int]) -> tuple[list[int], list[int]]:
        """The first rows with distinct positives that fill a batch, and the others in their order."""
        batch: list[int] = []
        passed: list[int] = []
        keys = set()
        for place, row in enumerate(rows):
            if len(batch) == self._batch_size:
                return batch, passed + rows[place:]
            if self._keys[row] in keys:
                passed.append(row)
            else:
                keys.add(self._keys[row])
                batch.append(row)
        return batch, passed
