"""Which rows of a corpus hold the same content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from mme5core.corpus.index import Index
from mme5core.corpus.out_of_core import first_of_equal, keys_of, new_array, save_array

ROWS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Contents:
    """The distinct contents of a corpus, numbered in the order of their first rows.

    Args:
        of_rows: a file of int64: the content of each row, -1 for a refused row.
        starts: int64 [shards + 1]: the first content that begins in each shard, and the number of contents at the end.
    """

    of_rows: Path
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    def of(self, start: int, count: int) -> np.ndarray:
        """int64 [count]: the contents of the rows from `start` on."""
        return np.fromfile(self.of_rows, np.int64, count, offset=8 * start)


def number_contents(index: Index, folder: Path) -> Contents:
    """Number the distinct contents of a corpus, or take the numbers that an earlier run has left in `folder`."""
    of_rows, starts = folder / "contents", folder / "contents.npy"
    if not starts.is_file():

        def keyed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for rows, table in index.tables(["key"], usable=True):
                yield rows, keys_of(table["key"])

        first = first_of_equal(keyed(), len(index), folder / "first_of_content")
        save_array(starts, _number(first, index.starts, of_rows))
        (folder / "first_of_content").unlink()
    return Contents(of_rows, np.load(starts))


def _number(first: np.ndarray, shard_starts: np.ndarray, out: Path) -> np.ndarray:
    """Write the content of each row; returns `Contents.starts`."""
    numbers = new_array(out, len(first))
    count, starts = 0, [0]
    for shard_start, shard_stop in pairwise(shard_starts.tolist()):
        for start in range(shard_start, shard_stop, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, shard_stop)
            first_of = first[start:stop]
            is_first = first_of == np.arange(start, stop)
            is_again = (first_of >= 0) & ~is_first
            here = np.full(stop - start, -1)
            here[is_first] = count + np.arange(is_first.sum())
            numbers[start:stop] = here  # a row may be equal to one of this part
            numbers[start:stop][is_again] = numbers[first_of[is_again]]
            count += int(is_first.sum())
        starts.append(count)
    numbers.flush()
    return np.array(starts)
