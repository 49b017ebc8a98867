"""The plan of a synthesis on disk: every sample to ask for, in the order of the corpus, and where its pictures lie.

Written once, a part at a time, from the index of the corpus and the neighbours of its pictures; memory holds neither.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.synthesis.plan import Neighbour, PlannedSample, PlanSettings, plan_image
from mme5core.types import Rejected
from rayjobs.config import ConfigError
from rayjobs.contents import Contents, number_contents
from rayjobs.external import first_of_equal, keys_of, sort_tables
from rayjobs.output import write_json
from rayjobs.scan import Index, id_key

PLANS_PER_FILE, FEWEST_PER_FILE, FILES_PER_WORKER = 4096, 64, 8
MADE = "plan.json"

PICTURE = pa.struct([("id", pa.string()), ("shard", pa.int32()), ("offset", pa.int64()), ("num_bytes", pa.int64())])
PLAN = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("modality_combination", pa.string()),
        ("language", pa.string()),
        ("query_image", pa.string()),
        ("positive_image", pa.string()),
        ("negative_images", pa.list_(pa.string())),
        ("pictures", pa.list_(PICTURE)),
    ]
)
# Neighbours whose pictures are both usable, by the rows of the corpus; `query` is the row in digits, which sort.
_PAIRS = pa.schema(
    [
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("source", pa.string()),
        ("score", pa.float32()),
        ("id", pa.string()),
        ("row", pa.int64()),
    ]
)

Tables = Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Planned samples, numbered from 0; file n holds those from `starts[n]` to `starts[n + 1]`.

    `counts` are those of "kinds" (task and modality combination) and "languages"; `num_pairs` those of the neighbours'
    pairs of which both pictures are in the corpus.
    """

    folder: Path
    starts: np.ndarray
    shards: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    num_pairs: int

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def num_files(self) -> int:
        return len(self.starts) - 1

    def rows(self, file: int) -> list[dict[str, Any]]:
        """The records of one file; those last read are kept."""
        return _rows(_file_of(self.folder, file))


def planned(record: dict[str, Any]) -> PlannedSample:
    return PlannedSample(
        record["id"],
        record["task"],
        record["modality_combination"],
        record["language"],
        record["query_image"],
        record["positive_image"],
        tuple(record["negative_images"]),
    )


def make_plan(index: Index, settings: PlanSettings, work: Path, *, neighbours: Tables | None, num_workers: int) -> Plan:
    """Plan the samples of every usable picture; what an earlier run has left in `work` is taken.

    Args:
        neighbours: gives tables of the schema NEIGHBOURS, any number of times.

    Raises:
        ConfigError: not one of the neighbours' pictures is in the corpus.
    """
    folder = work / "plan"
    made = folder / MADE
    if not made.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        contents = number_contents(index, work)
        pictures = _Pictures(index, contents, work)
        pairs = None if neighbours is None else _Pairs(pictures, neighbours, work)
        if pairs is not None and len(contents) and not pairs.num_pairs:
            raise ConfigError(
                f"neighbours: none of its {pairs.num_read:,} pairs has both pictures in the input (the first is "
                f"{pairs.first!r}): is it of another corpus?"
            )
        expected = len(contents) * settings.samples_per_image
        size = min(PLANS_PER_FILE, max(FEWEST_PER_FILE, expected // (FILES_PER_WORKER * num_workers)))
        starts, counts = _write_plans(pictures, settings, pairs, folder, size)
        written = {"starts": starts, "counts": counts, "pairs": 0 if pairs is None else pairs.num_pairs}
        pictures.remove()
        if pairs is not None:
            pairs.remove()
        write_json(made, written)
    found = json.loads(made.read_text())
    paths = tuple(str(shard) for shard in index.shards)
    return Plan(folder, np.array(found["starts"]), paths, found["counts"], found["pairs"])


def refused_samples(index: Index, contents: Contents, samples_per_image: int) -> Iterator[Rejected]:
    """Every planned sample that a bad picture, or one that was there before, takes away."""

    def rejected() -> Iterator[Rejected]:
        yield from index.refused()
        for _, table, is_first in _first_rows(index, contents, ["id"]):
            for image_id in table["id"].filter(pa.array(~is_first)).to_pylist():
                yield Rejected(image_id, "duplicate_image", "the same bytes as an earlier picture")

    for picture in rejected():
        for number in range(samples_per_image):
            yield Rejected(f"{picture.id}-{number}", picture.reason, picture.detail)


def _first_rows(
    index: Index, contents: Contents, columns: Sequence[str]
) -> Iterator[tuple[np.ndarray, pa.Table, np.ndarray]]:
    """`Index.tables` of the usable rows, and which of them are the first with their content."""
    num_seen = 0
    for rows, table in index.tables(columns, usable=True):
        if len(rows):
            start = int(rows[0])
            numbers = contents.of(start, int(rows[-1]) + 1 - start)[rows - start]
            # Contents are numbered in the order of their first rows: a new one is above all before it.
            seen = np.maximum.accumulate(np.concatenate([[num_seen - 1], numbers]))
            num_seen = int(seen[-1]) + 1
            yield rows, table, numbers > seen[:-1]


class _Pictures:
    """Where the picture of each row lies, and whether it is the first with its bytes: files, mapped."""

    def __init__(self, index: Index, contents: Contents, work: Path) -> None:
        self.index, self.contents = index, contents
        shape = (max(1, len(index)),)
        self._files = [work / name for name in ("offsets", "sizes", "firsts")]
        self._offsets = np.memmap(self._files[0], np.int64, "w+", shape=shape)
        self._sizes = np.memmap(self._files[1], np.int64, "w+", shape=shape)
        self.is_first = np.memmap(self._files[2], bool, "w+", shape=shape)
        for rows, table, is_first in _first_rows(index, contents, ["offset", "num_bytes"]):
            self._offsets[rows], self._sizes[rows] = table["offset"].to_numpy(), table["num_bytes"].to_numpy()
            self.is_first[rows] = is_first

    def place(self, image_id: str, row: int) -> dict[str, Any]:
        offset, num_bytes = int(self._offsets[row]), int(self._sizes[row])
        return {"id": image_id, "shard": self.index.shard_of(row), "offset": offset, "num_bytes": num_bytes}

    def remove(self) -> None:
        for file in self._files:
            file.unlink(missing_ok=True)


class _Pairs:
    """The neighbours of each picture, in the order of the corpus, joined on disk with where their pictures lie."""

    def __init__(self, pictures: _Pictures, tables: Tables, work: Path) -> None:
        self._file = work / "pairs.arrow"
        self.num_read = sum(len(table) for table in tables())
        self.num_pairs, self.first = 0, ""
        index, joined = pictures.index, work / "pairs"
        num_rows = len(index)

        def keyed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for rows, table in index.tables(["id_key"], usable=True):
                yield rows, keys_of(table["id_key"])
            start = num_rows
            for table in tables():
                # The query's and the candidate's in turn.
                ids = np.empty(2 * len(table), object)
                ids[0::2], ids[1::2] = table["query_id"].to_pylist(), table["candidate_id"].to_pylist()
                keys = pa.array([id_key(image_id or "") for image_id in ids], pa.binary(16))
                yield start + np.arange(len(ids)), keys_of(keys)
                start += len(ids)

        # Equal keys: the first row of each is the picture's, where the corpus has it.
        rows = first_of_equal(keyed(), num_rows + 2 * self.num_read, joined)[num_rows:]

        def found() -> Iterator[pa.Table]:
            start = 0
            for table in tables():
                if len(table):
                    self.first = self.first or f"{table['query_id'][0]} {table['candidate_id'][0]}"
                queries, candidates = rows[start : start + 2 * len(table)].reshape(-1, 2).T
                start += 2 * len(table)
                is_there = (queries < num_rows) & (candidates < num_rows) & (queries != candidates)
                places = np.flatnonzero(is_there)
                is_good = pictures.is_first[queries[places]] & pictures.is_first[candidates[places]]
                places = places[is_good]
                chosen = table.take(pa.array(places))
                columns = [
                    pa.array([f"{row:019d}" for row in queries[places].tolist()], pa.string()),
                    chosen["rank"],
                    chosen["source"],
                    chosen["score"],
                    chosen["candidate_id"],
                    pa.array(candidates[places], pa.int64()),
                ]
                self.num_pairs += len(places)
                yield pa.Table.from_arrays(columns, schema=_PAIRS)

        with pa.OSFile(str(self._file), "wb") as sink, pa.ipc.new_stream(sink, _PAIRS) as writer:
            for table in sort_tables(found(), work / "pairs_sorted", by=("query", "rank", "source")):
                writer.write_table(table)
        joined.unlink()

    def by_picture(self) -> Iterator[tuple[int, list[tuple[Neighbour, int]]]]:
        """(row, its neighbours with their rows), rows rising; nearest first within each source."""
        with pa.OSFile(str(self._file), "rb") as source, pa.ipc.open_stream(source) as reader:
            records = (record for batch in reader for record in batch.to_pylist())
            for query, group in groupby(records, key=lambda record: record["query"]):
                pairs = [
                    (Neighbour(pair["id"], pair["score"] or 0.0, pair["source"] or ""), pair["row"]) for pair in group
                ]
                yield int(query), pairs

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)


def _records(pictures: _Pictures, settings: PlanSettings, pairs: _Pairs | None) -> Iterator[list[dict[str, Any]]]:
    """The planned samples of each picture."""
    near = pairs.by_picture() if pairs else iter(())
    row_of_pairs, found = next(near, (-1, []))
    for rows, table, is_first in _first_rows(pictures.index, pictures.contents, ["id"]):
        for row, image_id in zip(
            rows[is_first].tolist(), table["id"].filter(pa.array(is_first)).to_pylist(), strict=True
        ):
            while -1 < row_of_pairs < row:
                row_of_pairs, found = next(near, (-1, []))
            own = found if row_of_pairs == row else []
            row_of = {neighbour.id: place for neighbour, place in own} | {image_id: row}
            yield [
                {
                    "id": plan.id,
                    "task": plan.task,
                    "modality_combination": plan.modality_combination,
                    "language": plan.language,
                    "query_image": plan.query_image,
                    "positive_image": plan.positive_image,
                    "negative_images": list(plan.negative_images),
                    "pictures": [pictures.place(shown, row_of[shown]) for shown in plan.image_ids],
                }
                for plan in plan_image(image_id, settings, [neighbour for neighbour, _ in own])
            ]


def _write_plans(
    pictures: _Pictures, settings: PlanSettings, pairs: _Pairs | None, folder: Path, size: int
) -> tuple[list[int], dict[str, dict[str, int]]]:
    """Files of at least `size` samples, all samples of a picture in one; their starts, and counts for people."""
    starts, waiting = [0], list[dict[str, Any]]()
    counts: dict[str, Counter[str]] = {"kinds": Counter(), "languages": Counter()}

    def flush() -> None:
        pq.write_table(pa.Table.from_pylist(waiting, PLAN), _file_of(folder, len(starts) - 1), compression="zstd")
        starts.append(starts[-1] + len(waiting))
        waiting.clear()

    for records in _records(pictures, settings, pairs):
        waiting += records
        counts["kinds"].update(f"{record['task']} {record['modality_combination']}" for record in records)
        counts["languages"].update(record["language"] for record in records)
        if len(waiting) >= size:
            flush()
    if waiting or len(starts) == 1:
        flush()
    return starts, {name: dict(count) for name, count in counts.items()}


def _file_of(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.parquet"


@lru_cache(maxsize=4)
def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows
