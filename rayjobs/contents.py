"""Which rows of a corpus hold the same content, and the vectors of the contents that are done."""

from __future__ import annotations

import hashlib
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayjobs.external import first_of_equal, keys_of, new_array, save_array, write_table
from rayjobs.scan import Index

ROWS_AT_ONCE = 1 << 20
OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Contents:
    """The distinct contents of a corpus, numbered in the order of their first rows.

    `of_rows` is a file of int64, the content of each row or -1 of one that is refused; `starts` [shards + 1] are the
    numbers of the first content that begins in each shard, and their count at the end.
    """

    of_rows: Path
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    def of(self, start: int, count: int) -> np.ndarray:
        """int64 [count]: the contents of the rows from `start` on."""
        return np.fromfile(self.of_rows, np.int64, count, offset=8 * start)


def number_contents(index: Index, folder: Path) -> Contents:
    """Number the distinct contents of a corpus; what an earlier run has left in `folder` is taken."""
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


def vector_schema(dimension: int) -> pa.Schema:
    """A content that was embedded, or why it could not be."""
    return pa.schema(
        [
            ("content", pa.int64()),
            ("embedding", pa.list_(pa.float32(), dimension)),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ]
    )


def append(folder: Path, table: pa.Table) -> None:
    """Write one batch of finished rows; it is there whole or not at all."""
    temporary = folder / f".{uuid.uuid4().hex}"
    write_table(table, temporary)
    temporary.rename(folder / f"{temporary.name[1:]}.arrow")


class VectorLog:
    """The files of vectors that actors have finished, each a part of the contents in no order.

    A place is where a content's row lies: the number of the file x 2^32 + the row; plus `REFUSED` where it has no
    vector. The files are mapped, a few at a time; memory holds none of them.
    """

    REFUSED = 1 << 62

    def __init__(self, folder: Path, dimension: int, names: Sequence[str] | None = None) -> None:
        """`names` are the files to take; None: all that are there now."""
        self.folder, self.dimension = folder, dimension
        self._names = sorted(file.name for file in folder.glob("*.arrow")) if names is None else list(names)
        self._open: OrderedDict[int, pa.Table] = OrderedDict()

    def __reduce__(self) -> Any:
        return VectorLog, (self.folder, self.dimension, self._names)

    def digest(self) -> str:
        """Equal where the same vectors are there."""
        return hashlib.sha256("\n".join(self._names).encode()).hexdigest()[:16]

    def locate(self, num_contents: int, out: Path) -> np.ndarray:
        """int64 [num_contents], mapped from the file `out`: the place of each content, -1 where there is none yet."""
        mapped = new_array(out, num_contents)
        places = mapped[:num_contents]
        places[:] = -1
        for number in range(len(self._names)):
            table = self._table(number)
            rows = (number << 32) + np.arange(len(table))
            contents = table["content"].to_numpy()
            is_refused = np.asarray(pc.is_valid(table["reason"]))
            places[contents[~is_refused]] = rows[~is_refused]
            # A content that a task tried twice has its vector, if it got one.
            left = is_refused & (places[contents] < 0)
            places[contents[left]] = rows[left] + self.REFUSED
        mapped.flush()  # other nodes read the file
        return places

    def count(self, num_contents: int, out: Path) -> int:
        """How many contents are done, with a vector or without."""
        return int((self.locate(num_contents, out) >= 0).sum())

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """float32 [N, D] of N places."""
        result = np.empty((len(places), self.dimension), np.float32)
        files = places >> 32
        by_file = np.argsort(files, kind="stable")
        for group in np.split(by_file, np.flatnonzero(np.diff(files[by_file])) + 1):
            if len(group):
                result[group] = self._matrix(int(files[group[0]]))[places[group] & 0xFFFFFFFF]
        return result

    def refusal(self, place: int) -> tuple[str, str]:
        """The reason and the detail of a place of a content that has no vector."""
        place -= self.REFUSED
        row = self._table(place >> 32).slice(place & 0xFFFFFFFF, 1).to_pylist()[0]
        return row["reason"], row["detail"] or ""

    def batches(self) -> Iterator[np.ndarray]:
        """All vectors, float32 [N, D], a file at a time."""
        for number in range(len(self._names)):
            yield self._matrix(number)[np.asarray(pc.is_null(self._table(number)["reason"]))]

    def _matrix(self, number: int) -> np.ndarray:
        table = self._table(number)
        if not len(table):
            return np.zeros((0, self.dimension), np.float32)
        (column,) = table["embedding"].chunks
        # A refused row takes its place too, with whatever lies there.
        values = np.frombuffer(column.values.buffers()[1], np.float32)
        return values[: len(column) * self.dimension].reshape(len(column), self.dimension)

    def _table(self, number: int) -> pa.Table:
        if number not in self._open:
            self._open[number] = pa.ipc.open_file(pa.memory_map(str(self.folder / self._names[number]))).read_all()
        self._open.move_to_end(number)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return self._open[number]
