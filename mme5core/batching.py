"""Rows grouped for a forward pass: one modality a batch, rows of like length together, within a budget."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(
    lengths: Sequence[int], has_image: Sequence[bool], *, max_rows: int, max_tokens: int
) -> list[list[int]]:
    """Row indices of each batch; every row in exactly one.

    Rows with and without picture never share a batch: on mllama a text beside a picture gets another
    embedding than alone. Rows are sorted by length, so that little is spent on padding.

    Args:
        lengths: true token count of each row.
        max_rows: rows of one batch at most.
        max_tokens: rows x longest row of one batch at most (a single longer row is a batch of its own).

    >>> plan_batches([5, 2, 9, 3], [False, False, True, False], max_rows=8, max_tokens=8)
    [[1, 3], [0], [2]]
    """
    if max_rows < 1 or max_tokens < 1:
        raise ValueError(f"max_rows and max_tokens must be >= 1, got {max_rows} and {max_tokens}")
    batches: list[list[int]] = []
    order = sorted(range(len(lengths)), key=lambda row: (has_image[row], lengths[row], row))
    for row in order:
        if batches:
            batch = batches[-1]
            fits = len(batch) < max_rows and (len(batch) + 1) * lengths[row] <= max_tokens
            if fits and has_image[batch[-1]] == has_image[row]:
                batch.append(row)
                continue
        batches.append([row])
    return batches
