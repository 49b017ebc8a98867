"""The order of ids by name, of any number of them, on disk: equal scores are ranked by it."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.corpus.out_of_core import new_array, write_table

IDS_IN_MEMORY = 1 << 20
_SAMPLES_PER_RUN = 1024


class IdTwice(ValueError):
    """An id that occurs twice."""


@dataclass(frozen=True, slots=True)
class IdOrder:
    """The place of each row's id among all ids in the order of their characters, mapped; travels to the tasks.

    Args:
        starts: int64 [files + 1]: the first place of each file of sorted ids, and their count at the end.
    """

    folder: Path
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])

    @classmethod
    def write(
        cls, ids: Iterable[pa.ChunkedArray], num_rows: int, folder: Path, *, ids_in_memory: int = IDS_IN_MEMORY
    ) -> IdOrder:
        """
        Args:
            ids: of all rows, in their order.

        Raises:
            IdTwice: its message is the id.
        """
        folder.mkdir()
        runs = list(_write_runs(ids, folder, ids_in_memory))
        place_of = new_array(folder / "places", num_rows)
        starts = [0]
        for number, (low, high) in enumerate(_ranges(runs, ids_in_memory)):
            table = pa.concat_tables([_between(run, low, high) for run in runs]).sort_by("id").combine_chunks()
            _check_distinct(table["id"])
            place_of[table["row"].to_numpy()] = np.arange(starts[-1], starts[-1] + len(table))
            write_table(table.select(["id"]), folder / f"{number:06d}.ids")
            starts.append(starts[-1] + len(table))
        place_of.flush()
        for file in folder.glob("*.run"):
            file.unlink()
        return cls(folder, np.array(starts))

    def places(self, start: int, stop: int) -> np.ndarray:
        """int64: the places of the ids of some rows."""
        return np.asarray(np.memmap(self.folder / "places", np.int64, "r", shape=(max(1, len(self)),))[start:stop])

    def places_of(self, rows: np.ndarray) -> np.ndarray:
        """int64: the places of the ids of some rows, in any order."""
        return np.asarray(np.memmap(self.folder / "places", np.int64, "r", shape=(max(1, len(self)),))[rows])

    def ids(self, places: np.ndarray) -> pa.ChunkedArray:
        """The ids at some places."""
        order = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[order], self.starts)
        chunks = [
            _mapped(self.folder / f"{number:06d}.ids")["id"].take(
                pa.array(places[order[low:high]] - self.starts[number])
            )
            for number, (low, high) in enumerate(itertools.pairwise(ends))
            if high > low
        ]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        whole = pa.chunked_array([c for chunk in chunks for c in chunk.chunks], type=pa.string())
        return whole.take(pa.array(back))


def _write_runs(ids: Iterable[pa.ChunkedArray], folder: Path, ids_in_memory: int) -> Iterator[pa.Table]:
    """Sorted runs of (id, row), mapped."""
    waiting: list[pa.Table] = []
    num_waiting = num_rows = num_runs = 0

    def run() -> pa.Table:
        nonlocal num_runs, num_waiting
        file = folder / f"{num_runs:06d}.run"
        table = pa.concat_tables(waiting).sort_by("id")
        _check_distinct(table["id"])  # many equal ids would make one range of all of them
        write_table(table, file)
        waiting.clear()
        num_runs, num_waiting = num_runs + 1, 0
        return _mapped(file)

    for column in ids:
        rows = pa.array(np.arange(num_rows, num_rows + len(column)))
        waiting.append(pa.table({"id": column.cast(pa.string()), "row": rows}))
        num_rows, num_waiting = num_rows + len(column), num_waiting + len(column)
        if num_waiting >= ids_in_memory:
            yield run()
    if waiting:
        yield run()


def _ranges(runs: list[pa.Table], ids_in_memory: int) -> Iterator[tuple[str | None, str | None]]:
    """Bounds of ids, so that between two of them there are about `ids_in_memory` ids; None: no bound."""
    total = sum(map(len, runs))
    samples: list[str] = []
    for run in runs:
        places = np.unique(np.linspace(0, len(run) - 1, min(len(run), _SAMPLES_PER_RUN)).astype(np.int64))
        samples += run["id"].take(pa.array(places)).to_pylist()
    samples.sort()
    num_ranges = max(1, -(-total // ids_in_memory))
    inner = list(dict.fromkeys(samples[len(samples) * n // num_ranges] for n in range(1, num_ranges)))
    bounds = [None, *inner, None]
    yield from itertools.pairwise(bounds)


def _between(run: pa.Table, low: str | None, high: str | None) -> pa.Table:
    """The rows of a run from one bound, inclusive, to the other."""
    start = 0 if low is None else bisect_left(run["id"], low, key=_text)
    stop = len(run) if high is None else bisect_left(run["id"], high, key=_text)
    return run.slice(start, stop - start)


def _text(scalar: pa.Scalar) -> str:
    return str(scalar.as_py())


def _check_distinct(ids: pa.ChunkedArray) -> None:
    if len(ids) > 1:
        again = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
        if pc.any(again).as_py():
            raise IdTwice(ids[pc.index(again, True).as_py()].as_py())


def _mapped(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
