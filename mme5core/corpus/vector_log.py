"""The vectors of the contents that are done: one Arrow file per batch, written by whoever embedded it."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.corpus.out_of_core import new_array, write_table
from mme5core.durable import sync_file

OPEN_FILES = 64
REFUSED = 1 << 62
"""Added to the place of a content that has no vector, but a reason."""


def vector_schema(dimension: int) -> pa.Schema:
    """A content that was embedded, or why it could not be."""
    return pa.schema(
        [
            ("content", pa.int64()),
            ("embedding", pa.list_(pa.float32(), dimension)),
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("is_cut", pa.bool_()),  # its prompt was longer than the limit
        ]
    )


def append(folder: Path, table: pa.Table) -> str:
    """Write one batch of finished contents, whole or not at all; returns the file's name."""
    temporary = folder / f".{uuid.uuid4().hex}"
    write_table(table, temporary)
    sync_file(temporary)
    file = folder / f"{temporary.name[1:]}.arrow"
    temporary.rename(file)
    return file.name


class VectorLog:
    """Vectors by their places: the number of the file x 2^32 + the row, plus `REFUSED` where there is no vector.

    The files are mapped, a few at a time; memory holds none of them. Travels to the tasks.
    """

    def __init__(self, folder: Path, dimension: int, names: Sequence[str]) -> None:
        """`names` are the files, in the order of their numbers."""
        self.folder, self.dimension, self.names = folder, dimension, list(names)
        self._open: OrderedDict[int, pa.Table] = OrderedDict()

    def __reduce__(self) -> Any:
        return VectorLog, (self.folder, self.dimension, self.names)

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """float32 [N, D] of N places."""
        result = np.empty((len(places), self.dimension), np.float32)
        files = places >> 32
        by_file = np.argsort(files, kind="stable")
        for group in np.split(by_file, np.flatnonzero(np.diff(files[by_file])) + 1):
            if len(group):
                result[group] = self._matrix(int(files[group[0]]))[places[group] & 0xFFFFFFFF]
        return result

    def num_cut(self, places: np.ndarray) -> int:
        """How many of the places hold the vector of a truncated prompt."""
        files, num_cut = places >> 32, 0
        for number in np.unique(files):
            is_cut = np.asarray(pc.fill_null(self.table(int(number))["is_cut"], False))
            num_cut += int(is_cut[places[files == number] & 0xFFFFFFFF].sum())
        return num_cut

    def refusal(self, place: int) -> tuple[str, str]:
        """The reason and the detail of a place of a content that has no vector."""
        place -= REFUSED
        row = self.table(place >> 32).slice(place & 0xFFFFFFFF, 1).to_pylist()[0]
        return row["reason"], row["detail"] or ""

    def batches(self) -> Iterator[np.ndarray]:
        """All vectors, float32 [N, D], a file at a time."""
        for number in range(len(self.names)):
            yield self._matrix(number)[np.asarray(pc.is_null(self.table(number)["reason"]))]

    def table(self, number: int) -> pa.Table:
        """One file, mapped."""
        if number not in self._open:
            self._open[number] = pa.ipc.open_file(pa.memory_map(str(self.folder / self.names[number]))).read_all()
        self._open.move_to_end(number)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return self._open[number]

    def _matrix(self, number: int) -> np.ndarray:
        table = self.table(number)
        if not len(table):
            return np.zeros((0, self.dimension), np.float32)
        (column,) = table["embedding"].chunks
        # A refused row takes its place too, with whatever lies there.
        numbers = np.frombuffer(column.values.buffers()[1], np.float32)
        return numbers[: len(column) * self.dimension].reshape(len(column), self.dimension)


class VectorPlaces:
    """Where each content's vector lies, in a mapped file that grows with what actors report.

    Attributes:
        places: int64 [num_contents], -1 where a content has not been embedded yet.
        log: the vectors.
        num_done: contents with a vector, or with a reason why there is none.
        prefix: so many contents from the first on are done.
    """

    def __init__(self, folder: Path, dimension: int, num_contents: int, out: Path) -> None:
        self._mapped = new_array(out, num_contents)
        self.places = self._mapped[:num_contents]
        self.places[:] = -1
        self.file, self.num_done, self.prefix = out, 0, 0
        self.log = VectorLog(folder, dimension, ())
        for file in sorted(folder.glob("*.arrow")):
            self._add(file.name, may_replace=True)

    def add(self, name: str) -> None:
        """Take a file of the log. A content that is done keeps its place: a task may be reading it."""
        self._add(name, may_replace=False)

    def _add(self, name: str, *, may_replace: bool) -> None:
        number = len(self.log.names)
        self.log.names.append(name)
        table = self.log.table(number)
        rows = (number << 32) + np.arange(len(table))
        contents = table["content"].to_numpy()
        is_refused = np.asarray(pc.is_valid(table["reason"]))
        before = self.places[contents]
        self.num_done += len(np.unique(contents[before < 0]))
        # A content that earlier runs tried twice has its vector, if it got one.
        is_taken = (before < 0) | (before >= REFUSED if may_replace else False)
        has_vector = is_taken & ~is_refused
        self.places[contents[has_vector]] = rows[has_vector]
        left = is_refused & (self.places[contents] < 0)
        self.places[contents[left]] = rows[left] + REFUSED
        missing = np.flatnonzero(self.places[self.prefix :][: 1 << 20] < 0)
        while not len(missing) and self.prefix < len(self.places):
            self.prefix = min(len(self.places), self.prefix + (1 << 20))
            missing = np.flatnonzero(self.places[self.prefix :][: 1 << 20] < 0)
        self.prefix += int(missing[0]) if len(missing) else 0

    def write_done(self) -> Path:
        """A file of a byte per content, 1 where it is done now, for `ReadUnembedded`."""
        file = self.file.with_name(f"{self.file.name}-before")
        (self.places >= 0).tofile(file)
        return file

    def flush(self) -> None:
        """Let other nodes see the file."""
        self._mapped.flush()
