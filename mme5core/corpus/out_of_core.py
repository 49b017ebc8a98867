"""Equal keys among more rows than memory holds: keys are split into files, and each file is sorted by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

BYTES_IN_MEMORY = 1 << 25
ROWS_IN_MEMORY = 1 << 20
MAX_PARTS = 256  # files open at once; of more rows than these hold, the parts are larger
RUNS_OF_ONE_SIZE = 128
SAMPLES_PER_RUN = 1000

Keyed = tuple[np.ndarray, np.ndarray]
"""Row numbers int64 [N], rising from one to the next of these, and their keys uint64 [N, 2]."""

_KEYED = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


def write_table(table: pa.Table, file: Path) -> None:
    """Write as one record batch, so that it can be searched without being read."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def first_of_equal(
    keyed: Iterable[Keyed], num_rows: int, out: Path, *, rows_in_memory: int = ROWS_IN_MEMORY
) -> np.ndarray:
    """For each of the rows 0 ... num_rows - 1 the first row with an equal key; -1 for rows that have none.

    Args:
        keyed: the rows in rising order.
        out: the file that holds the result, int64 [num_rows], mapped into memory; those of the parts lie beside it
            while this runs.
    """
    first = new_array(out, num_rows)[:num_rows]
    first[:] = -1
    for records in _sorted_parts(keyed, num_rows, out, rows_in_memory):
        is_new = np.ones(len(records), dtype=bool)
        is_new[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
        first[records["row"]] = records["row"][is_new][np.cumsum(is_new) - 1]
    return first


@dataclass(frozen=True, slots=True)
class KeyTable:
    """The row of each key, in a mapped file; travels to the tasks.

    Part n holds the keys whose first half modulo the number of parts is n, sorted: all first halves, then all
    second halves, then all rows, so that a search reads few pages. `starts` [parts + 1] are the places of the parts.
    """

    file: Path
    starts: np.ndarray

    @classmethod
    def write(
        cls, keyed: Iterable[Keyed], num_rows: int, file: Path, *, rows_in_memory: int = ROWS_IN_MEMORY
    ) -> KeyTable:
        """
        Args:
            keyed: rows in rising order, no key twice.
            num_rows: how many there are, at most.
        """
        starts = [0]
        with file.open("wb") as stream:
            for records in _sorted_parts(keyed, num_rows, file, rows_in_memory):
                for name in ("high", "low", "row"):
                    stream.write(np.ascontiguousarray(records[name]).data)
                starts.append(starts[-1] + len(records))
        return cls(file, np.array(starts))

    def rows_of(self, keys: np.ndarray) -> np.ndarray:
        """int64 [N]: the row of each of the keys uint64 [N, 2], -1 of one that is not there."""
        rows = np.full(len(keys), -1)
        if not self.starts[-1]:
            return rows
        numbers = np.memmap(self.file, np.uint64, "r")
        num_parts = len(self.starts) - 1
        part_of = keys[:, 0] % num_parts
        for part in np.unique(part_of).tolist():
            start, stop = 3 * self.starts[part], 3 * self.starts[part + 1]
            high, low, row = numbers[start:stop].reshape(3, -1)
            asked = np.flatnonzero(part_of == part)
            places = np.searchsorted(high, keys[asked, 0])
            while len(asked):
                inside = places < len(high)
                asked, places = asked[inside], places[inside]
                is_half = high[places] == keys[asked, 0]
                is_it = is_half & (low[places] == keys[asked, 1])
                rows[asked[is_it]] = row[places[is_it]].astype(np.int64)
                # Equal in the first half only: the key itself may come after it.
                asked, places = asked[is_half & ~is_it], places[is_half & ~is_it] + 1
        return rows


def _sorted_parts(keyed: Iterable[Keyed], num_rows: int, beside: Path, rows_in_memory: int) -> Iterator[np.ndarray]:
    """Records of _KEYED, split by their keys into parts of about `rows_in_memory`, each part sorted by itself.

    Args:
        beside: the files of the parts lie beside this one while they are needed.
    """
    num_parts = min(MAX_PARTS, max(1, -(-num_rows // rows_in_memory)))
    parts = [beside.with_name(f"{beside.name}.part{n}") for n in range(num_parts)]
    streams = [part.open("wb") for part in parts]
    for rows, keys in keyed:
        records = np.empty(len(rows), _KEYED)
        records["high"], records["low"], records["row"] = keys[:, 0], keys[:, 1], rows
        part_of = keys[:, 0] % num_parts
        for n, stream in enumerate(streams):
            stream.write(records[part_of == n].tobytes() if num_parts > 1 else records.tobytes())
    for stream in streams:
        stream.close()
    for part in parts:
        records = np.fromfile(part, _KEYED)
        yield records[np.lexsort((records["low"], records["high"]))]  # stable: rows of a key stay in their order
        part.unlink()


def new_array(file: Path, count: int) -> np.memmap:
    """int64 [count, and 1 of none], zeros in a new file, mapped; its room on the disk is taken at once.

    A store into a mapped file for which there is no room kills the process.

    Raises:
        OSError: the disk is full.
    """
    num_bytes = 8 * max(1, count)
    with file.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(stream.fileno(), 0, num_bytes)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # else it cannot be asked for
                    raise OSError(error.errno, error.strerror, str(file)) from None
        stream.truncate(num_bytes)
    return np.memmap(file, np.int64, "r+", shape=(max(1, count),))


def save_array(file: Path, array: np.ndarray) -> None:
    """Write as .npy, by rename."""
    temporary = file.with_name(f".{file.name}")
    with temporary.open("wb") as stream:
        np.save(stream, array)
    temporary.rename(file)


def keys_of(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """uint64 [N, 2] of a column of 16-byte keys, none of them null; a view where that is possible."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not len(array):
        return np.zeros((0, 2), np.uint64)
    whole = np.frombuffer(array.buffers()[1], "<u8").reshape(-1, 2)
    return whole[array.offset : array.offset + len(array)]
