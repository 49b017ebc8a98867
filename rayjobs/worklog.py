"""Rows that actors have finished, each batch durable by itself: what a killed run leaves to the next."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayjobs.external import write_table


def append(folder: Path, table: pa.Table) -> None:
    """Write one batch of finished rows; it is there whole or not at all."""
    temporary = folder / f".{uuid.uuid4().hex}"
    write_table(table, temporary)
    temporary.rename(folder / f"{temporary.name[1:]}.arrow")


class WorkLog:
    """All finished rows of a folder, by the column `key`; a key written twice (a retried task) counts once.

    The files are mapped, not read: memory holds the keys only.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._tables = [
            pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in sorted(folder.glob("*.arrow"))
        ]
        counts = [table.num_rows for table in self._tables]
        self._file = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._row = np.concatenate([np.arange(count, dtype=np.int64) for count in counts] or [np.zeros(0, np.int64)])
        self.keys = self.column("key")

    def __len__(self) -> int:
        return len(self.keys)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows, in the order of `keys`."""
        chunks = [chunk for table in self._tables for chunk in table[name].chunks]
        return pa.chunked_array(chunks, type=self._schema.field(name).type)

    def find(self, keys: pa.Array, *, among: np.ndarray | None = None) -> np.ndarray:
        """For each key the place of its first row, or of its first row where `among` is true; -1 for none."""
        candidates = np.arange(len(self)) if among is None else np.flatnonzero(among)
        if not len(candidates):
            return np.full(len(keys), -1, dtype=np.int64)
        known = self.keys.combine_chunks().take(pa.array(candidates))
        index = pc.index_in(keys, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
        return np.where(index >= 0, candidates[np.maximum(index, 0)], -1)

    def take(self, places: np.ndarray, *, rows_per_table: int = 10_000) -> Iterator[pa.Table]:
        """The rows at `places`, in that order, as tables of at most `rows_per_table` rows."""
        for start in range(0, len(places), rows_per_table):
            wanted = places[start : start + rows_per_table]
            files = self._file[wanted]
            by_file = np.argsort(files, kind="stable")
            pieces = [
                self._tables[file].take(pa.array(self._row[wanted[by_file[files[by_file] == file]]]))
                for file in np.unique(files)
            ]
            back = np.argsort(by_file, kind="stable")
            yield pa.concat_tables(pieces).take(pa.array(back))
