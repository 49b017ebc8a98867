"""Rows grouped for a forward pass: one modality a batch, rows of similar length together, within a budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


def plan_batches(
    lengths: Sequence[int],
    kinds: Sequence[int],
    *,
    max_rows: int,
    max_batch_tokens: int,
    pictures: Sequence[Sequence[Hashable]] | None = None,
    max_pictures: int | None = None,
) -> list[list[int]]:
    """Row indices of each batch; every row is in exactly one.

    Rows with and without picture never share a batch: on mllama the embedding of a text changes when a picture is
    in its batch. Rows are sorted by length to keep padding short. Rows that show the same pictures stay
    together, so that the vision tower runs once for all of them.

    Args:
        lengths: true token count of each row.
        kinds: rows of different kinds never share a batch; 0 is a row without picture.
        max_rows: most rows in a batch.
        max_batch_tokens: upper limit of rows x longest row in a batch; a single longer row is a batch of its own.
        pictures: for each row, a key of each of its pictures; None: every row has one picture that no other row shows.
        max_pictures: most distinct pictures in a batch.

    Raises:
        ValueError: a limit is below 1.

    >>> plan_batches([5, 2, 9, 3], [0, 0, 1, 0], max_rows=8, max_batch_tokens=8)
    [[1, 3], [0], [2]]
    >>> plan_batches([5, 4, 2], [1, 1, 1], max_rows=2, max_batch_tokens=99, pictures=["a", "b", "a"])
    [[1], [2, 0]]
    >>> pairs = ["ab", "bc", "cd"]
    >>> plan_batches([1, 2, 3], [1, 1, 1], max_rows=9, max_batch_tokens=99, pictures=pairs, max_pictures=3)
    [[0, 1], [2]]
    """
    limits = _Limits(max_rows, max_batch_tokens, max_pictures)
    keys_of = [(row,) if kind else () for row, kind in enumerate(kinds)] if pictures is None else pictures
    batches: list[list[int]] = []
    keys_in_batch: set[Hashable] = set()
    for rows in _rows_of_the_same_pictures(lengths, kinds, keys_of):
        joins_last = (
            bool(batches)
            and kinds[batches[-1][-1]] == kinds[rows[0]]
            and limits.has_room(len(batches[-1]), [lengths[row] for row in rows])
            and limits.allows_pictures(keys_in_batch.union(keys_of[rows[0]]))
        )
        if joins_last:
            batches[-1] += rows
            keys_in_batch.update(keys_of[rows[0]])
        else:
            batches += _split(rows, lengths, limits)
            keys_in_batch = set(keys_of[rows[0]])
    return batches


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of one batch."""

    max_rows: int
    max_batch_tokens: int
    max_pictures: int | None

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_batch_tokens < 1:
            raise ValueError(
                f"max_rows and max_batch_tokens must be >= 1, got {self.max_rows} and {self.max_batch_tokens}"
            )
        if self.max_pictures is not None and self.max_pictures < 1:
            raise ValueError(f"max_pictures must be >= 1, got {self.max_pictures}")

    def has_room(self, num_rows: int, new_lengths: Sequence[int]) -> bool:
        """Whether rows of these lengths fit into a batch of `num_rows` rows, none of which is longer than the longest
        of them."""
        total = num_rows + len(new_lengths)
        return total <= self.max_rows and total * max(new_lengths) <= self.max_batch_tokens

    def allows_pictures(self, keys: set[Hashable]) -> bool:
        return self.max_pictures is None or len(keys) <= self.max_pictures


def _split(rows: Sequence[int], lengths: Sequence[int], limits: _Limits) -> list[list[int]]:
    """Rows of the same pictures, sorted by length, as one batch, or as several where one would be too large."""
    batches = [[rows[0]]]
    for row in rows[1:]:
        if limits.has_room(len(batches[-1]), [lengths[row]]):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _rows_of_the_same_pictures(
    lengths: Sequence[int], kinds: Sequence[int], pictures: Sequence[Sequence[Hashable]]
) -> list[list[int]]:
    """Rows that show the same pictures in the same order, shortest first; the groups by kind and by longest row."""
    groups: dict[tuple[int, Hashable], list[int]] = {}
    for row, kind in enumerate(kinds):
        groups.setdefault((kind, tuple(pictures[row]) if kind else row), []).append(row)

    def place(rows: list[int]) -> tuple[int, int, int]:
        return kinds[rows[0]], max(lengths[row] for row in rows), rows[0]

    in_order = sorted(groups.values(), key=place)
    return [sorted(rows, key=lambda row: (lengths[row], row)) for rows in in_order]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one forward pass, all of one `kind` as in `plan_batches`.

    `number` is its place among all chunks of the batch, whichever process computes it. `weight` is 0 for a chunk
    that another process computes too: it only keeps the collectives of this process in step with that one's.
    """

    number: int
    rows: tuple[int, ...]
    kind: int
    weight: float = 1.0

    @property
    def has_image(self) -> bool:
        return self.kind > 0


def deal_chunks(
    lengths: Sequence[int], kinds: Sequence[int], *, max_rows: int, max_chunk_tokens: int, num_processes: int
) -> list[list[Chunk]]:
    """For each process the chunks that it computes, in their order; every row is in exactly one chunk of weight 1.

    All processes get the same number of chunks, and the n-th chunk of each has the same kind: otherwise some would
    run the vision tower while others do not, and under ZeRO their collectives would not match. The costliest chunk
    of a round goes to the process with the least work so far.

    Where the chunks of one process divide evenly among the processes, they are kept; otherwise the largest are halved
    until they do.
    """
    per_process: list[list[Chunk]] = [[] for _ in range(num_processes)]
    work = [0] * num_processes
    planned = plan_batches(lengths, kinds, max_rows=max_rows, max_batch_tokens=max_chunk_tokens)
    number = 0
    for kind in sorted(set(kinds)):
        rows_of = [rows for rows in planned if kinds[rows[0]] == kind]
        while len(rows_of) % num_processes and max(map(len, rows_of)) > 1:
            largest = max(range(len(rows_of)), key=lambda place: len(rows_of[place]))
            rows = rows_of[largest]
            rows_of[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        chunks = [Chunk(number + place, tuple(rows), kind) for place, rows in enumerate(rows_of)]
        number += len(chunks)
        costs = {chunk.number: sum(lengths[row] for row in chunk.rows) for chunk in chunks}
        chunks.sort(key=lambda chunk: (-costs[chunk.number], chunk.number))
        for first in range(0, len(chunks), num_processes):
            dealt = chunks[first : first + num_processes]
            # Fewer chunks than processes are left: each other process repeats one with weight 0.
            idle = Chunk(dealt[-1].number, dealt[-1].rows, kind, weight=0.0)
            dealt += [idle] * (num_processes - len(dealt))
            for chunk in dealt:
                free = [process for process in range(num_processes) if len(per_process[process]) == _round(per_process)]
                process = min(free, key=lambda process: (work[process], process))
                per_process[process].append(chunk)
                work[process] += costs[chunk.number]
    return per_process


def _round(per_process: list[list[Chunk]]) -> int:
    """Number of chunks of the process that has the fewest."""
    return min(len(chunks) for chunks in per_process)
