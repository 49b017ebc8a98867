"""The first pass over a corpus: what each row is, where it lies, and which rows cannot be used."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.readers import AS_IT_IS, CorpusRow, InputError, ReadOptions, read_rows
from mme5core.readers.shards import labels
from mme5core.storage import AnyPath, locate, parquet_file
from mme5core.types import Rejected
from rayjobs.cli import JobFailed
from rayjobs.cluster import rows_to_tables
from rayjobs.config import ConfigError
from rayjobs.external import first_of_equal, keys_of, save_array
from rayjobs.output import sync_file, write_json
from rayjobs.progress import Progress

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
    ]
)
_BEIR = {"query": "queries.jsonl", "target": "corpus.jsonl"}
DUPLICATES, TOTALS = "duplicates.npy", "totals.json"
ROWS_PER_GROUP, BYTES_PER_GROUP = 1 << 14, 1 << 24
ROWS_AT_ONCE = 1 << 20
COLUMNS_AT_ONCE = 1 << 16

KeyOf = Callable[[CorpusRow], bytes]


@dataclass(frozen=True, slots=True)
class Index:
    """Every row of a corpus in its order, without its content; on disk, read a part at a time.

    Rows are numbered over the whole corpus; `starts` [shards + 1] are the numbers of each shard's first row, and their
    count at the end.
    """

    shards: list[AnyPath]
    folder: Path
    starts: np.ndarray
    num_usable: int
    num_bytes: int

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
        """(row numbers, rows), a part at a time, of the whole corpus or of one shard.

        A second row of an id has the reason `duplicate_id`.

        Args:
            columns: of INDEX.
            usable: only rows that can be used, or only refused ones; None: all.
            within: what has none of the rows from the first to the second of these may be left out.
        """
        for number in range(len(self.shards)) if shard is None else [shard]:
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
    file = _file_of(folder, shard)
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
            for name, value in (("reason", "duplicate_id"), ("detail", "an earlier row has this id")):
                column = pc.if_else(pa.array(is_again), pa.scalar(value), table[name])
                table = table.set_column(table.column_names.index(name), name, column)
        start += len(table)
        if usable is not None:
            chosen = np.asarray(pc.is_null(table["reason"])) == usable
            table, numbers = table.filter(pa.array(chosen)), numbers[chosen]
        yield numbers, table.select(list(columns))


def _file_of(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.parquet"


def scan(ray: Any, shards: Sequence[AnyPath], task: ScanShard, *, label: str) -> Index:
    """Read every shard once, in parallel; what the task's folder has of an earlier run is not read again.

    A second row of an id is refused as `duplicate_id`.

    Args:
        task: its `limit` is for all shards together, in their order.
        label: what to call the job in its line of progress.

    Raises:
        ConfigError: there is not one row in all of the input.
        JobFailed: the index cannot be written.
    """
    folder = task.folder
    folder.mkdir(exist_ok=True)
    if not (folder / TOTALS).is_file():
        _scan_missing(ray, shards, task, label)
        starts = np.cumsum([0] + [_num_rows(_file_of(folder, number)) for number in range(len(shards))])
        if not starts[-1]:
            raise ConfigError(f"no rows in the input ({', '.join(path.name for path in shards[:3])})")
        _find_duplicates(folder, starts)
        num_usable, num_bytes = _totals(folder, starts)
        write_json(folder / TOTALS, {"starts": starts.tolist(), "usable": num_usable, "bytes": num_bytes})
    totals = json.loads((folder / TOTALS).read_text())
    return Index(list(shards), folder, np.array(totals["starts"]), totals["usable"], totals["bytes"])


def _scan_missing(ray: Any, shards: Sequence[AnyPath], task: ScanShard, label: str) -> None:
    folder, limit = task.folder, task.limit
    items: list[dict[str, Any]] = [
        {"shard": number, "path": str(path), "label": label}
        for number, (path, label) in enumerate(zip(shards, labels(shards), strict=True))
    ]
    # Listed, not asked for one by one: a shared file system would go on denying a file that another node writes soon.
    there = {file.name for file in folder.iterdir()}
    totals = {
        item["shard"]: _num_rows(_file_of(folder, item["shard"]))
        for item in items
        if _file_of(folder, item["shard"]).name in there
    }
    num_rows = sum(totals.values())
    items = [item for item in items if item["shard"] not in totals]
    # All shards at once, or with a limit one after the other until there are enough rows.
    groups = [[item] for item in items] if limit else [items]
    with Progress(f"{label}: reading", 0, "rows", done=num_rows) as progress:
        for group in groups:
            if not group or (limit and num_rows >= limit):
                break
            ray.data.DataContext.get_current().target_max_block_size = 1  # what a task yields comes at once
            dataset = ray.data.from_items(group, override_num_blocks=len(group)).map_batches(
                replace(task, limit=limit - num_rows if limit else None),
                batch_size=1,
                batch_format="pyarrow",
            )
            for table in rows_to_tables(dataset):
                for row in table.to_pylist():
                    if row["failure"]:
                        raise JobFailed(row["failure"])
                    num_rows += row["count"]
                    if row["total"] >= 0:
                        totals[row["shard"]] = row["total"]
                progress.update(num_rows)
    files = {_file_of(folder, shard).name for shard in totals}
    wait_until_seen(lambda: files <= {file.name for file in folder.iterdir()}, folder)
    for shard, total in totals.items():
        if _num_rows(_file_of(folder, shard)) != total:
            raise JobFailed(f"the index of {shards[shard].name} does not have the {total:,} rows that were read")


def wait_until_seen(is_there: Callable[[], bool], folder: Path, *, timeout_s: float = 120.0) -> None:
    """Until this machine sees what others have written to a shared folder.

    Raises:
        JobFailed: it does not, which is so when the folder is not shared.
    """
    deadline = time.monotonic() + timeout_s
    while not is_there():
        if time.monotonic() > deadline:
            raise JobFailed(f"what workers wrote to {folder} is not here: 'output' must lie where all nodes see it")
        time.sleep(1.0)


def _num_rows(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows) if file.is_file() else 0


def _find_duplicates(folder: Path, starts: np.ndarray) -> None:
    """Write the numbers of all rows whose id an earlier usable row has, in rising order."""

    def keyed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for shard, start in enumerate(starts[:-1]):
            if starts[shard + 1] == start:
                continue
            for batch in pq.ParquetFile(_file_of(folder, shard)).iter_batches(ROWS_PER_GROUP, columns=["id_key"]):
                column = batch.column("id_key")
                is_valid = np.asarray(pc.is_valid(column))
                yield start + np.flatnonzero(is_valid), keys_of(column.drop_null())
                start += batch.num_rows

    first = first_of_equal(keyed(), int(starts[-1]), folder / "first_of_id")
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(first), ROWS_AT_ONCE):
        first_of = first[start : start + ROWS_AT_ONCE]
        found.append(start + np.flatnonzero((first_of >= 0) & (first_of != start + np.arange(len(first_of)))))
    save_array(folder / DUPLICATES, np.concatenate(found))
    (folder / "first_of_id").unlink()


def _totals(folder: Path, starts: np.ndarray) -> tuple[int, int]:
    """Usable rows and the bytes of their pictures; tells in a line of each file of which not all could be read."""
    num_usable = num_bytes = num_broken = 0
    for shard, start in enumerate(starts[:-1]):
        for _, table in rows_of(folder, shard, int(start), ["id", "num_bytes", "reason", "detail"], None):
            usable = pc.is_null(table["reason"])
            num_usable += pc.sum(usable).as_py() or 0
            num_bytes += pc.sum(table["num_bytes"].filter(usable)).as_py() or 0
            # One refused row may stand for a million.
            broken = table.filter(pc.is_in(table["reason"], pa.array(["broken_shard", "no_content_column"])))
            for row in broken.to_pylist():
                num_broken += 1
                if num_broken <= 10:
                    print(f"{row['id']}: {row['reason']}, {row['detail']}", file=sys.stderr)
    if num_broken > 10:
        print(f"... and {num_broken - 10:,} more files", file=sys.stderr)
    return num_usable, num_bytes


@dataclass(frozen=True, slots=True)
class ScanShard:
    """The task: a shard in, its index into the work folder, counts out."""

    folder: Path
    key_of: KeyOf
    limit: int | None = None
    options: ReadOptions = AS_IT_IS

    def __call__(self, batch: pa.Table) -> Iterator[dict[str, list[Any]]]:
        """`count` as the rows come; at the end of the shard `total`, or what failed."""
        for item in batch.to_pylist():
            options = replace(self.options, label=item["label"])
            temporary = self.folder / f".{uuid.uuid4().hex}"
            told = {"shard": [item["shard"]], "count": [0], "total": [-1], "failure": [""]}
            total = 0
            try:
                with pq.ParquetWriter(temporary, INDEX, compression="zstd") as writer:
                    for table in _records(read_rows(locate(item["path"]), options), self.key_of, self.limit):
                        writer.write_table(table)
                        total += len(table)
                        yield told | {"count": [len(table)]}
                sync_file(temporary)
                temporary.rename(_file_of(self.folder, item["shard"]))
                yield told | {"total": [total]}
            except (OSError, ValueError, pa.ArrowException) as error:
                temporary.unlink(missing_ok=True)
                yield told | {"failure": [f"cannot index {item['path']} into {self.folder}: {first_line(error)}"]}


def _records(rows: Iterator[CorpusRow], key_of: KeyOf, limit: int | None) -> Iterator[pa.Table]:
    group: list[dict[str, Any]] = []
    num_bytes = 0
    for row in islice(rows, limit):
        group.append(_record(row, key_of))
        num_bytes += len(row.source or "")
        if len(group) >= ROWS_PER_GROUP or num_bytes >= BYTES_PER_GROUP:
            yield pa.Table.from_pylist(group, INDEX)
            group, num_bytes = [], 0
    if group:
        yield pa.Table.from_pylist(group, INDEX)


def _record(row: CorpusRow, key_of: KeyOf) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": row.id,
        "offset": row.offset,
        "num_bytes": len(row.image or b""),
        "source": row.source,
    }
    refused = row.refused
    if refused is None:
        try:
            record["key"] = key_of(row)
        except BadImage as error:
            refused = Rejected(row.id, error.reason, error.detail)
    if refused is not None:
        return record | {"reason": refused.reason, "detail": refused.detail}
    return record | {"id_key": id_key(row.id)}


def id_key(row_id: str) -> bytes:
    """What stands for an id in the index: 16 bytes, equal where ids are."""
    return hashlib.blake2b(row_id.encode(), digest_size=16).digest()


def one_side(shards: Sequence[AnyPath], side: str) -> list[AnyPath]:
    """Of a folder of BEIR's the file of one side; both, where both are wanted, and a line that says so."""
    names: dict[str, set[str]] = {}
    for shard in shards:
        names.setdefault(str(shard.parent), set()).add(shard.name)
    pairs = {folder for folder, found in names.items() if found >= set(_BEIR.values())}
    if pairs and side == "both":
        print(
            f"{min(pairs)}: corpus.jsonl and queries.jsonl are read as one corpus; side=target or side=query takes one",
            file=sys.stderr,
        )
    unwanted = set(_BEIR.values()) - {_BEIR.get(side)} if side != "both" else set()
    return [shard for shard in shards if str(shard.parent) not in pairs or shard.name not in unwanted]


def shards_of(inputs: Sequence[str], **options: Any) -> list[AnyPath]:
    """`find_shards` with its error as a configuration error."""
    from mme5core.readers import find_shards

    try:
        return find_shards(inputs, note=lambda line: print(line, file=sys.stderr), **options)
    except InputError as error:
        raise ConfigError(str(error)) from None


def files_with(path: str, schema: pa.Schema, key: str) -> list[AnyPath]:
    """The files of a Parquet file or folder that has the columns of a schema; `key` names the setting.

    Raises:
        ConfigError: there is none, a file cannot be read, lacks a column, or has one of another kind.
    """
    try:
        files = shards_of([path], suffixes=(".parquet",))
    except ConfigError as error:
        raise ConfigError(str(error).replace("input", key, 1)) from None
    for file in files:
        with told_as(key, file):
            found = parquet_file(file).schema_arrow
            for name in schema.names:
                if found.names.count(name) != 1:
                    has = f"has {found.names.count(name) or 'no'} column{'s' * (name in found.names)} {name!r}"
                    raise ConfigError(f"{key} {str(file)!r} {has}; its columns are {', '.join(found.names)}")
            _cast(found.empty_table(), schema)
    return files


def column_tables(
    file: AnyPath, schema: pa.Schema, key: str, *, groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """The columns of a schema, a part at a time, of some row groups or of all; `key` names the setting.

    Raises:
        ConfigError: a part cannot be read, or a value cannot be what the schema says.
    """
    with told_as(key, file):
        for batch in parquet_file(file).iter_batches(COLUMNS_AT_ONCE, row_groups=groups, columns=schema.names):
            yield _cast(pa.table(batch), schema)


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, of its types.

    Raises:
        pa.ArrowInvalid: naming the column that cannot be one.
    """
    columns = []
    for field in schema:
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowException as error:
            raise pa.ArrowInvalid(f"column {field.name!r}: {first_line(error)}") from None
    return pa.Table.from_arrays(columns, schema=schema)


@contextlib.contextmanager
def told_as(key: str, file: AnyPath) -> Iterator[None]:
    """Errors of reading a file as errors of the setting that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        message = f"{key} {str(file)!r} cannot be read ({first_line(error)})"
        # Of what is in the file Parquet says OSError too, without a number.
        is_lasting = not isinstance(error, OSError) or error.errno in (None, errno.ENOENT, errno.EACCES)
        raise (ConfigError if is_lasting else JobFailed)(message) from None
