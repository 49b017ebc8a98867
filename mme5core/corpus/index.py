"""The index of a corpus on disk: what each row is, where it lies, and which rows cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.schemas import CONTENT_COLUMNS
from mme5core.storage import AnyPath
from mme5core.types import Rejected

# A file per shard, its rows in their order: the n-th is the shard's n-th row.
INDEX = pa.schema(
    [
        ("id", pa.string()),
        ("id_key", pa.binary(16)),  # hash of the id; null where the row is refused
        ("key", pa.binary(16)),  # equal where the content is; null where the row is refused
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("source", pa.string()),  # the chosen columns as a JSON object; null where none are chosen
        *CONTENT_COLUMNS,  # null where the job writes no vectors
    ]
)
DUPLICATES = "duplicates.npy"
ROWS_PER_GROUP = 1 << 14


@dataclass(frozen=True, slots=True)
class Index:
    """Every row of a corpus in order, without its content; on disk, read a part at a time.

    Rows are numbered over the whole corpus. `starts` [shards + 1] holds the number of each shard's first row, and the
    number of all rows at the end.
    """

    shards: list[AnyPath]
    folder: Path
    starts: np.ndarray
    num_usable: int

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shard_of(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def tables(
        self,
        columns: Sequence[str],
        *,
        shard: int | None = None,
        usable: bool | None = None,
        within: tuple[int, int] | None = None,
    ) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """(row numbers, rows) of the whole corpus or of one shard, a part at a time.

        A second row of an id has the reason `duplicate_id`.

        Args:
            columns: of INDEX.
            usable: only rows that can be used, or only refused ones; None: all.
            within: (start, stop): parts without any of these rows may be left out.
        """
        numbers: Iterable[int] = range(len(self.shards)) if shard is None else [shard]
        if shard is None and within is not None:
            numbers = range(self.shard_of(within[0]), self.shard_of(max(within[0], within[1] - 1)) + 1)
        for number in numbers:
            yield from rows_of(self.folder, number, int(self.starts[number]), columns, usable, within)

    def refused(self) -> Iterator[Rejected]:
        """Every row that cannot be used, and why."""
        for _, table in self.tables(["id", "reason", "detail"], usable=False):
            for row in table.to_pylist():
                yield Rejected(row["id"], row["reason"], row["detail"] or "")


def rows_of(
    folder: Path,
    shard: int,
    start: int,
    columns: Sequence[str],
    usable: bool | None = None,
    within: tuple[int, int] | None = None,
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """`Index.tables` of one shard, whose first row has the number `start`."""
    file = index_file(folder, shard)
    if not file.is_file():
        return  # beyond the limit
    again = np.load(folder / DUPLICATES, mmap_mode="r")
    names = list(dict.fromkeys([*columns, "reason", "detail"]))
    parquet = pq.ParquetFile(file)
    groups = list(range(parquet.num_row_groups))
    if within is not None:
        sizes = np.array([parquet.metadata.row_group(group).num_rows for group in groups], np.int64)
        ends = start + np.cumsum(sizes)
        groups = np.flatnonzero((ends > within[0]) & (ends - sizes < within[1])).tolist()
        start = int((ends - sizes)[groups[0]]) if groups else start
    for batch in parquet.iter_batches(batch_size=ROWS_PER_GROUP, row_groups=groups, columns=names):
        table = pa.table(batch)
        numbers = np.arange(start, start + len(table))
        here = again[slice(*np.searchsorted(again, [start, start + len(table)]))]
        if len(here):
            is_again = np.zeros(len(table), dtype=bool)
            is_again[here - start] = True
            for name, text in (("reason", "duplicate_id"), ("detail", "an earlier row has this id")):
                column = pc.if_else(pa.array(is_again), pa.scalar(text), table[name])
                table = table.set_column(table.column_names.index(name), name, column)
        start += len(table)
        if usable is not None:
            chosen = np.asarray(pc.is_null(table["reason"])) == usable
            table, numbers = table.filter(pa.array(chosen)), numbers[chosen]
        yield numbers, table.select(list(columns))


def index_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.parquet"


def id_key(row_id: str) -> bytes:
    """16 bytes that stand for an id in the index, equal where the ids are."""
    return hashlib.blake2b(row_id.encode(), digest_size=16).digest()
