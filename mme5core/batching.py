"""Rows grouped for a forward pass: one modality a batch, rows of like length together, within a budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


def plan_batches(
    lengths: Sequence[int],
    has_image: Sequence[bool],
    *,
    max_rows: int,
    max_tokens: int,
    pictures: Sequence[Hashable] | None = None,
    max_pictures: int | None = None,
) -> list[list[int]]:
    """Row indices of each batch; every row in exactly one.

    Rows with and without picture never share a batch: on mllama a text beside a picture gets another
    embedding than alone. Rows are sorted by length, so that little is spent on padding; those of one picture stay
    together, so that it is read once.

    Args:
        lengths: true token count of each row.
        max_rows: rows of one batch at most.
        max_tokens: rows x longest row of one batch at most (a single longer row is a batch of its own).
        pictures: what tells each row's picture from others; None: no two rows share one.
        max_pictures: distinct pictures of one batch at most.

    >>> plan_batches([5, 2, 9, 3], [False, False, True, False], max_rows=8, max_tokens=8)
    [[1, 3], [0], [2]]
    >>> plan_batches([5, 4, 2], [True] * 3, max_rows=2, max_tokens=99, pictures="aba")
    [[1], [2, 0]]
    """
    if max_rows < 1 or max_tokens < 1 or (max_pictures is not None and max_pictures < 1):
        raise ValueError(f"max_rows and max_tokens must be >= 1, got {max_rows} and {max_tokens}")
    groups: dict[tuple[bool, Hashable], list[int]] = {}
    for row, has_picture in enumerate(has_image):
        key = pictures[row] if pictures is not None and has_picture else row
        groups.setdefault((has_picture, key), []).append(row)
    batches: list[list[int]] = []
    num_pictures = 0

    def fits(batch: list[int], more: list[int], *, new_picture: bool) -> bool:
        count = len(batch) + len(more)
        return (
            count <= max_rows
            and count * max(lengths[row] for row in more) <= max_tokens  # in their order none before is longer
            and has_image[batch[-1]] == has_image[more[0]]
            and (max_pictures is None or not new_picture or num_pictures < max_pictures)
        )

    def place(rows: list[int]) -> tuple[bool, int, int]:
        return has_image[rows[0]], max(lengths[row] for row in rows), rows[0]

    for rows in sorted(groups.values(), key=place):
        rows.sort(key=lambda row: (lengths[row], row))
        if batches and fits(batches[-1], rows, new_picture=has_image[rows[0]]):
            batches[-1] += rows
            num_pictures += 1
            continue
        # Whole in a batch of its own, or if it is too large, in several.
        is_new = True
        for row in rows:
            if is_new or not fits(batches[-1], [row], new_picture=False):
                batches.append([row])
                num_pictures = 1
            else:
                batches[-1].append(row)
            is_new = False
    return batches


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one forward pass; `number` is its place among all chunks of the batch, on whatever process it runs.

    `weight` is 0 for one that another process computes too: it only keeps this process in step with that one.
    """

    number: int
    rows: tuple[int, ...]
    has_image: bool
    weight: float = 1.0


def deal_chunks(
    lengths: Sequence[int], has_image: Sequence[bool], *, max_rows: int, max_tokens: int, num_processes: int
) -> list[list[Chunk]]:
    """For each process the chunks that it computes, in their order; every row in exactly one of weight 1.

    The processes hold equally many chunks, and the n-th of each has the same modality: otherwise some would run
    the vision tower while others do not, and under ZeRO their collectives would not match. The costliest chunk
    of a round goes to the process with the least work so far.

    The chunks are those of one process wherever their number can be shared out; else the largest are halved.
    """
    per_process: list[list[Chunk]] = [[] for _ in range(num_processes)]
    work = [0] * num_processes
    planned = plan_batches(lengths, has_image, max_rows=max_rows, max_tokens=max_tokens)
    number = 0
    for modality in (False, True):
        rows_of = [rows for rows in planned if has_image[rows[0]] == modality]
        while len(rows_of) % num_processes and max(map(len, rows_of)) > 1:
            largest = max(range(len(rows_of)), key=lambda place: len(rows_of[place]))
            rows = rows_of[largest]
            rows_of[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        chunks = [Chunk(number + place, tuple(rows), modality) for place, rows in enumerate(rows_of)]
        number += len(chunks)
        costs = {chunk.number: sum(lengths[row] for row in chunk.rows) for chunk in chunks}
        chunks.sort(key=lambda chunk: (-costs[chunk.number], chunk.number))
        for first in range(0, len(chunks), num_processes):
            dealt = chunks[first : first + num_processes]
            # Fewer rows than processes: the others repeat a row, for nothing.
            idle = Chunk(dealt[-1].number, dealt[-1].rows, modality, weight=0.0)
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
