"""The first pass over a corpus: what each row is, where it lies, and which rows cannot be used."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.images import BadImage, load_rgb
from mme5core.readers import AS_IT_IS, CorpusRow, InputError, ReadOptions, read_rows
from mme5core.readers.shards import labels
from mme5core.storage import AnyPath, locate
from mme5core.types import Rejected
from rayjobs.cluster import rows_to_tables
from rayjobs.config import ConfigError
from rayjobs.progress import Progress

INDEX = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.binary(16)),  # equal where the content is; null where the row is refused
        ("shard", pa.int32()),
        ("position", pa.int64()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
ROWS_PER_TABLE = 2048

KeyOf = Callable[[CorpusRow], bytes]


@dataclass(frozen=True, slots=True)
class Index:
    """Every row of a corpus in its order, without its content."""

    shards: list[AnyPath]
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def refused(self) -> list[Rejected]:
        rows = self.table.filter(pc.is_valid(self.table["reason"])).select(["id", "reason", "detail"])
        return [Rejected(row["id"], row["reason"], row["detail"] or "") for row in rows.to_pylist()]

    def usable(self) -> pa.Table:
        return self.table.filter(pc.is_null(self.table["reason"]))


def scan(
    ray: Any,
    shards: Sequence[AnyPath],
    *,
    key_of: KeyOf,
    limit: int | None,
    cache: Path,
    label: str,
    options: ReadOptions = AS_IT_IS,
) -> Index:
    """Read every shard once, in parallel; kept in `cache` so that a resumed run need not read again.

    A second row of an id is refused as `duplicate_id`.

    Raises:
        ConfigError: there is not one row in all of the input.
    """
    if cache.is_file():
        with pa.memory_map(str(cache)) as source:
            return Index(list(shards), pa.ipc.open_file(source).read_all())
    items = [
        {"shard": number, "path": str(path), "label": label}
        for number, (path, label) in enumerate(zip(shards, labels(shards), strict=True))
    ]
    # All shards at once, or with a limit one after the other until there are enough rows.
    groups = [[item] for item in items] if limit else [items]
    tables = [INDEX.empty_table()]
    num_rows = 0
    with Progress(f"{label}: reading", 0, "rows") as progress:
        for group in groups:
            if limit and num_rows >= limit:
                break
            dataset = ray.data.from_items(group, override_num_blocks=len(group)).map_batches(
                _scan_shard,
                batch_size=1,
                batch_format="pyarrow",
                fn_kwargs={"key_of": key_of, "limit": limit - num_rows if limit else None, "options": options},
            )
            for table in rows_to_tables(dataset):
                tables.append(table.cast(INDEX))
                num_rows += table.num_rows
                progress.update(num_rows)
    table = pa.concat_tables(tables).sort_by([("shard", "ascending"), ("position", "ascending")])
    table = _mark_duplicate_ids(table)
    if not table.num_rows:
        raise ConfigError(f"no rows in the input ({', '.join(path.name for path in shards[:3])})")
    _tell_of_broken(table)
    temporary = cache.with_name(f".{cache.name}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, INDEX) as writer:
        writer.write_table(table)
    temporary.rename(cache)
    return Index(list(shards), table)


def _tell_of_broken(table: pa.Table) -> None:
    """A line for each file of which not all could be read: one refused row may stand for a million."""
    broken = table.filter(pc.is_in(table["reason"], pa.array(["broken_shard", "no_content_column"])))
    for row in broken.slice(0, 10).select(["id", "reason", "detail"]).to_pylist():
        print(f"{row['id']}: {row['reason']}, {row['detail']}", file=sys.stderr)
    if len(broken) > 10:
        print(f"... and {len(broken) - 10:,} more files", file=sys.stderr)


def picture_key(row: CorpusRow) -> bytes:
    """The picture's content, once it is known that it decodes.

    Raises:
        BadImage: it does not, or there is none.
    """
    if row.image is None:
        raise BadImage("no_picture", "a row without picture")
    load_rgb(row.image)
    return hashlib.sha256(row.image).digest()[:16]


def _scan_shard(
    batch: pa.Table, *, key_of: KeyOf, limit: int | None, options: ReadOptions = AS_IT_IS
) -> Iterator[pa.Table]:
    for item in batch.to_pylist():
        records: list[dict[str, Any]] = []
        for position, row in enumerate(
            read_rows(locate(item["path"]), replace(options, label=item.get("label") or ""))
        ):
            if limit is not None and position >= limit:
                break
            records.append(_record(row, item["shard"], position, key_of))
            if len(records) >= ROWS_PER_TABLE:
                yield pa.Table.from_pylist(records, INDEX)
                records = []
        yield pa.Table.from_pylist(records, INDEX)


def _record(row: CorpusRow, shard: int, position: int, key_of: KeyOf) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": row.id,
        "shard": shard,
        "position": position,
        "offset": row.offset,
        "num_bytes": len(row.image or b""),
    }
    refused = row.refused
    if refused is None:
        try:
            record["key"] = key_of(row)
        except BadImage as error:
            refused = Rejected(row.id, error.reason, error.detail)
    if refused is not None:
        record |= {"reason": refused.reason, "detail": refused.detail}
    return record


def _mark_duplicate_ids(table: pa.Table) -> pa.Table:
    ids = table["id"].combine_chunks()
    # A refused row of the same id (a failed download listed beside a good one) takes nothing away.
    usable = pc.is_null(table["reason"]).to_numpy(zero_copy_only=False)
    codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    places = np.flatnonzero(usable)
    _, first = np.unique(codes[places], return_index=True)
    again = np.setdiff1d(places, places[first], assume_unique=True)
    if not len(again):
        return table
    mask = np.zeros(table.num_rows, dtype=bool)
    mask[again] = True
    for name, value in (("reason", "duplicate_id"), ("detail", "an earlier row has this id")):
        column = pc.if_else(pa.array(mask), pa.scalar(value), table[name])
        table = table.set_column(table.column_names.index(name), name, column)
    key = pc.if_else(pa.array(mask), pa.scalar(None, pa.binary(16)), table["key"])
    return table.set_column(table.column_names.index("key"), "key", key)


def shards_of(inputs: Sequence[str], **options: Any) -> list[AnyPath]:
    """`find_shards` with its error as a configuration error."""
    from mme5core.readers import find_shards

    try:
        return find_shards(inputs, note=lambda line: print(line, file=sys.stderr), **options)
    except InputError as error:
        raise ConfigError(str(error)) from None
