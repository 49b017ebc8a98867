"""The plan of a synthesis on disk: every sample to ask for, in the order of the corpus, and where its pictures lie.

It is written once, by tasks that take a range of the pictures each, from the index of the corpus and the neighbours of
its pictures. Memory holds neither.
"""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.corpus.contents import Contents, number_contents
from mme5core.corpus.index import Index
from mme5core.corpus.out_of_core import KeyTable, keys_of, new_array
from mme5core.durable import sync_file, wait_until_seen, write_json
from mme5core.errors import InputError
from mme5core.progress import Progress
from mme5core.storage import AnyPath
from mme5core.synthesis.neighbour_pairs import Pairs, join_pairs
from mme5core.synthesis.plan import PlannedSample, PlanSettings, plan_image
from mme5core.tasks import Item, Runner, run_here
from mme5core.types import Rejected

PLANS_PER_FILE, FEWEST_PER_FILE, FILES_PER_WORKER = 4096, 64, 8
SAMPLES_PER_TASK = 1 << 15
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


@dataclass(frozen=True, slots=True)
class Plan:
    """Planned samples, numbered from 0; file n holds those from `starts[n]` to `starts[n + 1]`.

    Args:
        counts: of "kinds" (task and modality combination) and "languages".
        num_pairs: neighbours' pairs of which both pictures are in the corpus.
        num_not_drawn: samples that were not planned: too few neighbours, or every language held out.
    """

    folder: Path
    starts: np.ndarray
    shards: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    num_pairs: int
    num_not_drawn: int

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def num_files(self) -> int:
        return len(self.starts) - 1

    def rows(self, file: int) -> list[dict[str, Any]]:
        """The records of one file; the last few files are kept in memory."""
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


def make_plan(
    index: Index,
    settings: PlanSettings,
    work: Path,
    *,
    neighbours: Sequence[AnyPath] | None,
    num_workers: int,
    run: Runner = run_here,
) -> Plan:
    """Plan the samples of every usable picture, or take the plan that an earlier run has left in `work`.

    Args:
        neighbours: files of the schema NEIGHBOURS.
        run: runs the tasks.

    Raises:
        InputError: not one of the neighbours' pictures is in the corpus, or not one sample can be planned.
    """
    folder = work / "plan"
    made = folder / MADE
    for left in work.glob("planning-*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    if not made.is_file():
        # A random name: tasks of a killed run may still be writing into theirs.
        scratch = work / f"planning-{uuid.uuid4().hex}"
        staged = scratch / "plan"
        staged.mkdir(parents=True)
        corpus, keys = Corpus.write(index, number_contents(index, work), scratch)
        pairs = join_pairs(neighbours, keys, scratch / "pairs", run) if neighbours and len(corpus) else None
        # Small enough that every worker gets files, and that a killed one loses little.
        expected = len(corpus) * settings.samples_per_image
        size = min(PLANS_PER_FILE, max(FEWEST_PER_FILE, expected // (FILES_PER_WORKER * num_workers)))
        task = WritePlans(corpus, settings, pairs, staged, max(1, size // settings.samples_per_image))
        written = _write_plans(task, run)
        num_not_drawn = len(corpus) * settings.samples_per_image - written["starts"][-1]
        more = {"pairs": 0 if pairs is None else pairs.num_pairs, "not_drawn": num_not_drawn}
        write_json(staged / MADE, written | more)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)
    stored = json.loads(made.read_text())
    paths = tuple(str(shard) for shard in index.shards)
    plan = Plan(
        folder, np.array(stored["starts"]), paths, stored["counts"], stored["pairs"], stored.get("not_drawn", 0)
    )
    for line in what_is_not_drawn(settings, plan.num_not_drawn, len(plan), has_neighbours=neighbours is not None):
        print(f"synth: {line}", file=sys.stderr)
    return plan


def what_is_not_drawn(
    settings: PlanSettings, num_not_drawn: float, num_drawn: float, *, has_neighbours: bool
) -> list[str]:
    """Lines for people.

    Raises:
        InputError: nothing at all can be drawn.
    """
    never = [] if has_neighbours else settings.never_drawn()
    why = "their pictures have too few neighbours, or every language is held out for them"
    if never:
        why = f"{', '.join(never)} need neighbours=, pictures that are near each other"
    if num_not_drawn and not num_drawn:
        raise InputError(f"not one sample can be planned: {why}")
    lines = [f"without neighbours= there are no samples of {', '.join(never)}"] if never else []
    return lines + ([f"{num_not_drawn:,.0f} samples are not planned: {why}"] if num_not_drawn else [])


def num_planned(work: Path) -> int | None:
    """How many samples an earlier run has planned; None: it has not planned any yet."""
    try:
        return int(json.loads((work / "plan" / MADE).read_text())["starts"][-1])
    except FileNotFoundError:
        return None


def refused_samples(index: Index, contents: Contents, samples_per_image: int) -> Iterator[Rejected]:
    """The planned samples of pictures that are bad, or equal to an earlier one."""

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


class Corpus:
    """The pictures to plan samples for, each distinct content once, in order, and the place of every picture.

    Rows, offsets and sizes lie in files below `folder`, which tasks map: memory holds none of them.
    """

    def __init__(self, index: Index, folder: Path, num_pictures: int) -> None:
        self._index, self._folder, self._num_pictures = index, folder, num_pictures

    def __len__(self) -> int:
        return self._num_pictures

    def __reduce__(self) -> Any:
        return Corpus, (self._index, self._folder, self._num_pictures)

    @classmethod
    def write(cls, index: Index, contents: Contents, folder: Path) -> tuple[Corpus, KeyTable]:
        """The pictures of an index, and the table of their rows by the keys of their ids."""
        corpus = cls(index, folder, len(contents))
        rows_of = new_array(folder / "rows", len(contents))
        offsets, sizes = (new_array(folder / name, len(index)) for name in ("offsets", "sizes"))

        def keyed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            num_seen = 0
            for rows, table, is_first in _first_rows(index, contents, ["id_key", "offset", "num_bytes"]):
                offsets[rows], sizes[rows] = table["offset"].to_numpy(), table["num_bytes"].to_numpy()
                first = rows[is_first]
                rows_of[num_seen : num_seen + len(first)] = first
                num_seen += len(first)
                yield first, keys_of(table["id_key"].filter(pa.array(is_first)))

        keys = KeyTable.write(keyed(), len(contents), folder / "keys")
        for mapped in (rows_of, offsets, sizes):
            mapped.flush()  # other nodes read them
        return corpus, keys

    def rows(self, start: int, stop: int) -> np.ndarray:
        """int64: the rows of the pictures from `start` to `stop`."""
        return np.asarray(self._mapped("rows", self._num_pictures)[start : min(stop, self._num_pictures)])

    def ids(self, rows: np.ndarray) -> Iterator[tuple[int, str]]:
        """(row, id) of pictures, whose rows rise.

        Raises:
            FileNotFoundError: this machine does not see all of the index.
        """
        num_found = 0
        shards = range(self._index.shard_of(rows[0]), self._index.shard_of(rows[-1]) + 1) if len(rows) else ()
        for shard in shards:
            for numbers, table in self._index.tables(["id"], shard=shard, usable=True, within=(rows[0], rows[-1] + 1)):
                is_wanted = np.isin(numbers, rows, assume_unique=True)
                num_found += int(is_wanted.sum())
                yield from zip(
                    numbers[is_wanted].tolist(), table["id"].filter(pa.array(is_wanted)).to_pylist(), strict=True
                )
        if num_found != len(rows):
            raise FileNotFoundError(
                2, f"{len(rows) - num_found:,} rows of the index are not seen", str(self._index.folder)
            )

    def places(self) -> Callable[[str, int], dict[str, Any]]:
        """A function from a picture's id and row to its place."""
        offsets, sizes = (self._mapped(name, len(self._index)) for name in ("offsets", "sizes"))

        def place(image_id: str, row: int) -> dict[str, Any]:
            shard = self._index.shard_of(row)
            return {"id": image_id, "shard": shard, "offset": int(offsets[row]), "num_bytes": int(sizes[row])}

        return place

    def _mapped(self, name: str, count: int) -> np.memmap:
        return np.memmap(self._folder / name, np.int64, "r", shape=(max(1, count),))


@dataclass(frozen=True, slots=True)
class WritePlans:
    """The task: writes the files of the plan from number `first` to `stop`."""

    corpus: Corpus
    settings: PlanSettings
    pairs: Pairs | None
    folder: Path
    pictures_per_file: int

    def __call__(self, item: Item) -> Iterator[Item]:
        start, stop = (item[name] * self.pictures_per_file for name in ("first", "stop"))
        records_of = self._records(self.corpus.rows(start, stop))
        sizes = []
        counts: dict[str, Counter[str]] = {"kinds": Counter(), "languages": Counter()}
        for number in range(item["first"], item["stop"]):
            records = list(chain.from_iterable(islice(records_of, self.pictures_per_file)))
            temporary = self.folder / f".{uuid.uuid4().hex}"
            pq.write_table(pa.Table.from_pylist(records, PLAN), temporary, compression="zstd")
            sync_file(temporary)
            temporary.rename(_file_of(self.folder, number))
            sizes.append(len(records))
            counts["kinds"].update(f"{record['task']} {record['modality_combination']}" for record in records)
            counts["languages"].update(record["language"] for record in records)
        yield {"first": item["first"], "sizes": sizes} | counts

    def _records(self, rows: np.ndarray) -> Iterator[list[dict[str, Any]]]:
        """The planned samples of each picture."""
        place = self.corpus.places()
        near = self.pairs.by_query(rows[0], rows[-1] + 1) if self.pairs and len(rows) else iter(())
        row_of_pairs, neighbours = next(near, (-1, []))
        for row, image_id in self.corpus.ids(rows):
            while -1 < row_of_pairs < row:
                row_of_pairs, neighbours = next(near, (-1, []))
            own = neighbours if row_of_pairs == row else []
            row_of = {neighbour.id: other for neighbour, other in own} | {image_id: row}
            yield [
                {
                    "id": plan.id,
                    "task": plan.task,
                    "modality_combination": plan.modality_combination,
                    "language": plan.language,
                    "query_image": plan.query_image,
                    "positive_image": plan.positive_image,
                    "negative_images": list(plan.negative_images),
                    "pictures": [place(shown, row_of[shown]) for shown in plan.image_ids],
                }
                for plan in plan_image(image_id, self.settings, [neighbour for neighbour, _ in own])
            ]


def _write_plans(task: WritePlans, run: Runner) -> dict[str, Any]:
    """All files of the plan: where each starts, and counts for people."""
    num_files = max(1, -(-len(task.corpus) // task.pictures_per_file))
    samples_per_file = task.pictures_per_file * task.settings.samples_per_image
    files_per_task = max(1, SAMPLES_PER_TASK // samples_per_file)
    items = [
        {"first": first, "stop": min(first + files_per_task, num_files)}
        for first in range(0, num_files, files_per_task)
    ]
    sizes = np.zeros(num_files, np.int64)
    counts: dict[str, Counter[str]] = {"kinds": Counter(), "languages": Counter()}
    with Progress("synth: planning", num_files, "files") as progress:
        num_done = 0
        for report in run(task, items):
            sizes[report["first"] : report["first"] + len(report["sizes"])] = report["sizes"]
            for name, count in counts.items():
                count.update(report[name])
            num_done += len(report["sizes"])
            progress.update(num_done)
    wait_until_seen(lambda: len(list(task.folder.glob("*.parquet"))) == num_files, task.folder)
    return {"starts": [0, *np.cumsum(sizes).tolist()], "counts": {name: dict(count) for name, count in counts.items()}}


def _file_of(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.parquet"


@lru_cache(maxsize=4)
def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows
