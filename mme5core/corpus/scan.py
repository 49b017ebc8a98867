"""The first pass over a corpus: every shard is read once, in tasks, into its file of the index."""

from __future__ import annotations

import json
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.corpus.fetched_pictures import ASIDE, FetchPictures, fetched_files, pictures_of, set_aside
from mme5core.corpus.index import DUPLICATES, INDEX, ROWS_PER_GROUP, Index, id_key, index_file, rows_of
from mme5core.corpus.out_of_core import first_of_equal, keys_of, save_array
from mme5core.durable import sync_file, wait_until_seen, write_json
from mme5core.errors import InputError, WorkFailed, WorkPending, first_line
from mme5core.images import BadImage
from mme5core.progress import Progress
from mme5core.readers import AS_IT_IS, CorpusRow, ReadOptions, read_rows
from mme5core.storage import AnyPath, locate
from mme5core.tasks import Item, Runner, run_here
from mme5core.types import Rejected

TOTALS = "totals.json"
VERSION_FILE, READERS_VERSION = "version.json", 3
BYTES_PER_GROUP = 1 << 24
ROWS_AT_ONCE = 1 << 20
BROKEN_FILES_SHOWN = 10
LEFT_S = 300.0
"""A file that nobody has written to for so long was left by a killed task."""
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}|[0-9a-f]{32}\.pictures")

KeyOf = Callable[[CorpusRow], bytes]
"""The 16-byte key of a row's content, equal where the content is. Raises BadImage for a row that cannot be used."""

Describe = Callable[[CorpusRow, bytes], Item]
"""CONTENT_COLUMNS of a row with this key."""


def scan(
    shards: Sequence[AnyPath], labels: Sequence[str], task: ScanShard, *, job: str, run: Runner = run_here
) -> Index:
    """Index every shard; what an earlier run has left in the task's folder is not read again.

    A second row of an id is refused as `duplicate_id`.

    Args:
        labels: of the shards, see `readers.shards.labels`.
        task: its `limit` is for all shards together, in their order.
        job: whose name stands in the progress line.

    Raises:
        InputError: there is not one row in all of the input.
        WorkPending: pictures could not be reached.
        WorkFailed: the index cannot be written, or was begun by a version that read corpora otherwise.
    """
    folder = task.folder
    folder.mkdir(exist_ok=True)
    _check_version(folder)
    if not (folder / TOTALS).is_file():
        _scan_missing(shards, labels, task, job, run)
        starts = np.cumsum([0] + [_num_rows(index_file(folder, number)) for number in range(len(shards))])
        if not starts[-1]:
            raise InputError(f"no rows in the input ({', '.join(path.name for path in shards[:3])})")
        if task.fetches and not task.refuses_unreachable:
            _check_reached(folder, starts)
        find_duplicates(folder, starts)
        write_json(folder / TOTALS, {"starts": starts.tolist(), "usable": count_usable(folder, starts)})
    totals = json.loads((folder / TOTALS).read_text())
    return Index(list(shards), folder, np.array(totals["starts"]), totals["usable"])


def _check_version(folder: Path) -> None:
    """
    Raises:
        WorkFailed: another version of the readers has begun the index: its rows may have other ids and places.
    """
    marker = folder / VERSION_FILE
    if not marker.is_file():
        if any(folder.glob("*.parquet")):
            raise WorkFailed(
                f"{folder.parent.parent} was begun by an earlier version, which read corpora otherwise: "
                "finish it with that version, or give another output"
            )
        write_json(marker, {"readers": READERS_VERSION})
    elif json.loads(marker.read_text())["readers"] != READERS_VERSION:
        raise WorkFailed(f"{folder.parent.parent} was begun by another version: give another output")


def _scan_missing(shards: Sequence[AnyPath], labels: Sequence[str], task: ScanShard, job: str, run: Runner) -> None:
    folder, limit = task.folder, task.limit
    # Listed, not asked for one by one: a shared file system would go on denying a file that another node writes soon.
    present = {file.name for file in folder.iterdir()}
    totals: dict[int, int] = {}
    items: list[Item] = []
    for number, (path, label) in enumerate(zip(shards, labels, strict=True)):
        if index_file(folder, number).name in present:
            totals[number] = _num_rows(index_file(folder, number))
        else:
            items.append({"shard": number, "path": str(path), "label": label})
    num_rows = sum(totals.values())
    # All shards at once, or with a limit one after the other until there are enough rows.
    groups = [[item] for item in items] if limit else [items]
    with Progress(f"{job}: reading", 0, "rows", done=num_rows) as progress:
        for group in groups:
            if not group or (limit and num_rows >= limit):
                break
            for report in run(replace(task, limit=limit - num_rows if limit else None), group):
                num_rows += report.get("rows", 0)
                if "total" in report:
                    totals[report["shard"]] = report["total"]
                progress.update(num_rows)
    names = {index_file(folder, shard).name for shard in totals}
    wait_until_seen(lambda: names <= {file.name for file in folder.iterdir()}, folder)
    for shard, total in totals.items():
        if _num_rows(index_file(folder, shard)) != total:
            raise WorkFailed(f"the index of {shards[shard].name} does not have the {total:,} rows that were read")
    _delete_leftovers(folder)


def _delete_leftovers(folder: Path) -> None:
    """Delete what killed tasks have left, and what earlier scans fetched for shards that are scanned now."""
    superseded = {file for file in folder.glob(f"*{ASIDE}") if file.with_suffix(".parquet").is_file()}
    names = {name for file in superseded for name in pictures_of(file)}
    for file in superseded:
        file.unlink(missing_ok=True)
    # Another run that has taken the folder over may be writing the newer ones.
    oldest = time.time() - LEFT_S
    leftovers = [file for file in folder.iterdir() if _UNFINISHED.fullmatch(file.name)]
    leftovers = [file for file in leftovers if file.name in names or _time_of(file) < oldest]
    if leftovers:
        kept = fetched_files(folder)
        for file in leftovers:
            if file.name not in kept:
                file.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class ScanShard:
    """The task: reads a shard and writes its file of the index.

    It reports the `rows` of each part as they come, and at the end of the shard their `total`.

    Args:
        describe: fills CONTENT_COLUMNS; None: they stay empty.
        fetches: fetch pictures that are at servers, and keep them beside the index.
        check: raises BadImage for a row whose pictures need not be fetched.
        refuses_unreachable: refuse those whose server does not answer; else a scan with such pictures ends unfinished.
    """

    folder: Path
    key_of: KeyOf
    limit: int | None = None
    options: ReadOptions = AS_IT_IS
    describe: Describe | None = None
    fetches: bool = False
    check: Callable[[CorpusRow], None] | None = None
    refuses_unreachable: bool = False

    def __call__(self, item: Item) -> Iterator[Item]:
        """
        Raises:
            WorkFailed: the shard cannot be indexed.
        """
        options = replace(self.options, label=item["label"])
        temporary = self.folder / f".{uuid.uuid4().hex}"
        total = 0
        try:
            with (
                FetchPictures(self.folder, item["shard"], self.check) as fetched,
                pq.ParquetWriter(temporary, INDEX, compression="zstd") as writer,
            ):
                rows = islice(read_rows(locate(item["path"]), options), self.limit)
                for table in _records(fetched.rows(rows) if self.fetches else rows, self.key_of, self.describe):
                    writer.write_table(table)
                    total += len(table)
                    yield {"shard": item["shard"], "rows": len(table)}
                writer.add_key_value_metadata(fetched.close())
            sync_file(temporary)
            temporary.rename(index_file(self.folder, item["shard"]))
        except (OSError, ValueError, pa.ArrowException) as error:
            temporary.unlink(missing_ok=True)
            raise WorkFailed(f"cannot index {item['path']} into {self.folder}: {first_line(error)}") from None
        yield {"shard": item["shard"], "total": total}


def _time_of(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:  # deleted or renamed since
        return time.time()


def _records(rows: Iterator[CorpusRow], key_of: KeyOf, describe: Describe | None) -> Iterator[pa.Table]:
    group: list[Item] = []
    num_bytes = 0
    for row in rows:
        group.append(_record(row, key_of, describe))
        num_bytes += len(row.source or "")
        if len(group) >= ROWS_PER_GROUP or num_bytes >= BYTES_PER_GROUP:
            yield pa.Table.from_pylist(group, INDEX)
            group, num_bytes = [], 0
    if group:
        yield pa.Table.from_pylist(group, INDEX)


def _record(row: CorpusRow, key_of: KeyOf, describe: Describe | None) -> Item:
    record: Item = {"id": row.id, "offset": row.offset, "num_bytes": row.num_bytes, "source": row.source}
    refused = row.refused
    if refused is None:
        try:
            record["key"] = key_of(row)
            record |= describe(row, record["key"]) if describe else {}
        except BadImage as error:
            refused = Rejected(row.id, error.reason, error.detail)
        except Exception as error:
            refused = Rejected(row.id, "unreadable_row", f"{type(error).__name__}: {first_line(error)}")
    if refused is not None:
        return record | {"reason": refused.reason, "detail": refused.detail}
    return record | {"id_key": id_key(row.id)}


def find_duplicates(folder: Path, starts: np.ndarray) -> None:
    """Write the numbers of all rows whose id an earlier usable row has, in rising order."""

    def keyed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for shard, start in enumerate(starts[:-1]):
            if starts[shard + 1] == start:
                continue
            for batch in pq.ParquetFile(index_file(folder, shard)).iter_batches(ROWS_PER_GROUP, columns=["id_key"]):
                column = batch.column("id_key")
                is_valid = np.asarray(pc.is_valid(column))
                yield start + np.flatnonzero(is_valid), keys_of(column.drop_null())
                start += batch.num_rows

    first = first_of_equal(keyed(), int(starts[-1]), folder / "first_of_id")
    duplicates = [np.zeros(0, np.int64)]
    for start in range(0, len(first), ROWS_AT_ONCE):
        first_of = first[start : start + ROWS_AT_ONCE]
        duplicates.append(start + np.flatnonzero((first_of >= 0) & (first_of != start + np.arange(len(first_of)))))
    save_array(folder / DUPLICATES, np.concatenate(duplicates))
    (folder / "first_of_id").unlink()


def count_usable(folder: Path, starts: np.ndarray) -> int:
    """Usable rows; prints of each file that could not be read whole why."""
    num_usable = num_broken = 0
    for shard, start in enumerate(starts[:-1]):
        for _, table in rows_of(folder, shard, int(start), ["id", "reason", "detail"]):
            num_usable += table["reason"].null_count
            # One refused row may stand for a million that could not be read.
            broken = table.filter(pc.is_in(table["reason"], pa.array(["broken_shard", "no_content_column"])))
            for row in broken.to_pylist():
                num_broken += 1
                if num_broken <= BROKEN_FILES_SHOWN:
                    print(f"{row['id']}: {row['reason']}, {row['detail']}", file=sys.stderr)
    if num_broken > BROKEN_FILES_SHOWN:
        print(f"... and {num_broken - BROKEN_FILES_SHOWN:,} more files", file=sys.stderr)
    return num_usable


def _check_reached(folder: Path, starts: np.ndarray) -> None:
    """
    Raises:
        WorkPending: pictures could not be reached; their shards are scanned again by the next run.
    """
    num_unreached, example = 0, ""
    for shard, start in enumerate(starts[:-1]):
        if starts[shard + 1] == start:
            continue
        table = pq.read_table(index_file(folder, shard), columns=["reason", "detail"])
        unreached = table.filter(pc.equal(table["reason"], "unreachable_image"))
        if len(unreached):
            num_unreached += len(unreached)
            example = example or unreached["detail"][0].as_py()
            set_aside(folder, shard)
    if num_unreached:
        raise WorkPending(
            f"{num_unreached:,} pictures could not be reached ({example}): start the same command again, or go on "
            "without them by unreachable=refuse"
        )


def _num_rows(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows) if file.is_file() else 0
