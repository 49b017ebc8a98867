"""Rows grouped for a forward pass: one modality a batch, rows of like length together, within a budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


def plan_batches(
    lengths: Sequence[int],
    kinds: Sequence[int],
    *,
    max_rows: int,
    max_tokens: int,
    pictures: Sequence[Sequence[Hashable]] | None = None,
    max_pictures: int | None = None,
) -> list[list[int]]:
    """Row indices of each batch; every row in exactly one.

    Rows with and without picture never share a batch: on mllama a text beside a picture gets another
    embedding than alone. Rows are sorted by length, so that little is spent on padding; those of the same pictures
    stay together, so that these are read once.

    Args:
        lengths: true token count of each row.
        kinds: rows of different kinds never share a batch; 0 is a row without picture.
        max_rows: rows of one batch at most.
        max_tokens: rows x longest row of one batch at most (a single longer row is a batch of its own).
        pictures: for each row what tells its pictures from others; None: one a row, and no two rows share one.
        max_pictures: distinct pictures of one batch at most.

    >>> plan_batches([5, 2, 9, 3], [0, 0, 1, 0], max_rows=8, max_tokens=8)
    [[1, 3], [0], [2]]
    >>> plan_batches([5, 4, 2], [1, 1, 1], max_rows=2, max_tokens=99, pictures=["a", "b", "a"])
    [[1], [2, 0]]
    >>> plan_batches([1, 2, 3], [1, 1, 1], max_rows=9, max_tokens=99, pictures=["ab", "bc", "cd"], max_pictures=3)
    [[0, 1], [2]]
    """
    if max_rows < 1 or max_tokens < 1 or (max_pictures is not None and max_pictures < 1):
        raise ValueError(f"max_rows and max_tokens must be >= 1, got {max_rows} and {max_tokens}")
    shown = [(row,) if kind else () for row, kind in enumerate(kinds)] if pictures is None else pictures
    batches: list[list[int]] = []
    in_last_batch: set[Hashable] = set()

    def has_room(batch: list[int], more: list[int]) -> bool:
        count = len(batch) + len(more)
        # In their order none before is longer.
        return count <= max_rows and count * max(lengths[row] for row in more) <= max_tokens

    def fits(batch: list[int], more: list[int]) -> bool:
        return (
            has_room(batch, more)
            and kinds[batch[-1]] == kinds[more[0]]
            and (max_pictures is None or len(in_last_batch.union(shown[more[0]])) <= max_pictures)
        )

    for rows in _rows_of_the_same_pictures(lengths, kinds, shown):
        if batches and fits(batches[-1], rows):
            batches[-1] += rows
            in_last_batch.update(shown[rows[0]])
            continue
        # Whole in a batch of its own, or if it is too large, in several.
        batches.append(rows[:1])
        in_last_batch = set(shown[rows[0]])
        for row in rows[1:]:
            if has_room(batches[-1], [row]):
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
    """Rows of one forward pass; `number` is its place among all chunks of the batch, on whatever process it runs.

    All its rows are of one `kind`, as in `plan_batches`. `weight` is 0 for one that another process computes too: it
    only keeps this process in step with that one.
    """

    number: int
    rows: tuple[int, ...]
    kind: int
    weight: float = 1.0

    @property
    def has_image(self) -> bool:
        return self.kind > 0


def deal_chunks(
    lengths: Sequence[int], kinds: Sequence[int], *, max_rows: int, max_tokens: int, num_processes: int
) -> list[list[Chunk]]:
    """For each process the chunks that it computes, in their order; every row in exactly one of weight 1.

    The processes hold equally many chunks, and the n-th of each has the same kind: otherwise some would run
    the vision tower while others do not, and under ZeRO their collectives would not match. The costliest chunk
    of a round goes to the process with the least work so far.

    The chunks are those of one process wherever their number can be shared out; else the largest are halved.
    """
    per_process: list[list[Chunk]] = [[] for _ in range(num_processes)]
    work = [0] * num_processes
    planned = plan_batches(lengths, kinds, max_rows=max_rows, max_tokens=max_tokens)
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
            # Fewer rows than processes: the others repeat a row, for nothing.
            idle = Chunk(dealt[-1].number, dealt[-1].rows, kind, weight=0.0)
            dealt += [idle] * (num_processes - len(dealt))
            for chunk in dealt:
                free = [process for process in range(num_processes) if len(per_process[process]) == _round(per_process)]
                process = min(free, key=lambda process: (work[process], process))
                per_process[process].append(chunk)
                work[process] += costs[chunk.number]
    return per_process


def _round(per_process: list[list[Chunk]]) -> int:
    """How many chunks the process with the fewest holds."""
    return min(len(chunks) for chunks in per_process)
