"""From vectors to the parts of the output: rows in input order, each with the vector of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mme5core.corpus.contents import Contents
from mme5core.corpus.index import Index
from mme5core.corpus.source_columns import SourceColumns
from mme5core.corpus.vector_log import REFUSED, VectorLog
from mme5core.durable import wait_until_seen
from mme5core.parts import NewPart
from mme5core.schemas import CONTENT_COLUMNS
from mme5core.tasks import Item
from mme5core.types import Rejected
from mme5core.vectors import Int8Calibration, VectorFormat, cut

SLICE_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class PartRange:
    """The rows of a part, and how many contents must be done for it to be final.

    Args:
        start, stop: numbers of its first row and of the row after its last.
        num_contents: of the corpus that begin before `stop`.
    """

    start: int
    stop: int
    num_contents: int


def part_ranges(index: Index, contents: Contents, rows_per_file: int) -> list[PartRange]:
    """Parts of `rows_per_file` usable rows each, in the order of the input.

    They are known before anything is embedded; a part whose contents turn out to be bad has fewer rows.
    """
    ranges: list[PartRange] = []
    start = num_usable = num_contents = 0
    for rows, _ in index.tables(["offset"], usable=True):
        if not len(rows):
            continue
        numbers = contents.of(int(rows[0]), int(rows[-1] - rows[0]) + 1)[rows - rows[0]]
        begun = np.maximum.accumulate(np.maximum(numbers + 1, num_contents))
        # The places, among these rows, of the last row of each part.
        for last in range(rows_per_file - 1 - num_usable % rows_per_file, len(rows), rows_per_file):
            ranges.append(PartRange(start, int(rows[last]) + 1, int(begun[last])))
            start = int(rows[last]) + 1
        num_usable += len(rows)
        num_contents = int(begun[-1])
    if num_usable % rows_per_file or not num_usable:
        ranges.append(PartRange(start, len(index), num_contents))
    return ranges


def part_item(number: int, part: PartRange, contents: Contents, places: np.ndarray, calibration: str) -> Item:
    """The item of `WriteVectors`; what it is made from are the rows that are done, and the calibration."""
    own = places_of_rows(contents, places, part.start, part.stop)
    is_done = own >= 0
    made_from = hashlib.sha256(np.packbits(is_done).tobytes() + calibration.encode()).hexdigest()[:16]
    return {
        "part": number,
        "start": part.start,
        "stop": part.stop,
        "num_done": int(is_done.sum()),
        "made_from": made_from,
    }


def places_of_rows(contents: Contents, places: np.ndarray, start: int, stop: int) -> np.ndarray:
    """int64 [stop - start]: the place of each row's vector; -1 of a refused row, and of one that is not done."""
    numbers = contents.of(start, stop - start)
    own = np.full(len(numbers), -1)
    own[numbers >= 0] = places[numbers[numbers >= 0]]
    return own


@dataclass(frozen=True, slots=True)
class WriteVectors:
    """The task: writes one part, and counts the rows that are "kept", "pending", and kept though their prompt is "cut".

    Args:
        places: file of the places of all contents (`VectorPlaces`).
        folder: of the parts.
    """

    index: Index
    contents: Contents
    places: Path
    log: VectorLog
    vector_format: VectorFormat
    calibration: Int8Calibration | None
    schema: pa.Schema
    source: SourceColumns
    folder: Path

    def __call__(self, item: Item) -> Iterator[Item]:
        places = self._places(item)
        num_kept = num_pending = num_cut = 0
        rows_per_group = max(1, SLICE_BYTES // (4 * self.vector_format.width))
        with NewPart(self.folder, self.schema) as part:
            for rows, table in self.index.tables(self._columns, usable=True, within=(item["start"], item["stop"])):
                is_own = (rows >= item["start"]) & (rows < item["stop"])
                own = places[rows[is_own] - item["start"]]
                table = table.filter(pa.array(is_own))
                has_vector = (own >= 0) & (own < REFUSED)
                part.refused += self._refused(table, own)
                num_pending += int((own < 0).sum())
                table, own = table.filter(pa.array(has_vector)), own[has_vector]
                num_kept += len(table)
                num_cut += self.log.num_cut(own)
                for start in range(0, len(table), rows_per_group):
                    part.writer.write_table(
                        self._with_vectors(table.slice(start, rows_per_group), own[start : start + rows_per_group])
                    )
            yield item | {"kept": num_kept, "pending": num_pending, "cut": num_cut} | part.close()

    @property
    def _columns(self) -> list[str]:
        return ["id", "source", *(field.name for field in CONTENT_COLUMNS)]

    def _places(self, item: Item) -> np.ndarray:
        """The places of the part's rows, once this node sees what the driver has written."""

        def read() -> np.ndarray:
            places = np.memmap(self.places, np.int64, "r")
            return places_of_rows(self.contents, places, item["start"], item["stop"])

        wait_until_seen(lambda: int((read() >= 0).sum()) >= item["num_done"], self.places.parent)
        return read()

    def _refused(self, table: pa.Table, places: np.ndarray) -> Iterator[Rejected]:
        for row in np.flatnonzero(places >= REFUSED).tolist():
            reason, detail = self.log.refusal(int(places[row]))
            if reason == "changed_since_scan":
                detail = "its content changed while the job ran"
            yield Rejected(table["id"][row].as_py(), reason, detail)

    def _with_vectors(self, rows: pa.Table, places: np.ndarray) -> pa.Table:
        vector_ND = cut(self.log.vectors(places), self.vector_format.dim)
        columns = {"id": rows["id"]} | self.vector_format.arrays(vector_ND, self.calibration)
        columns |= {field.name: rows[field.name] for field in CONTENT_COLUMNS}
        return pa.table(columns | self.source.arrays(rows["source"]), schema=self.schema)
