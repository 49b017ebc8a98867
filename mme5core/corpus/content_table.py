"""Contents of a corpus by their ids, mapped from disk: those that some ids name, or all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.content_key import document_key
from mme5core.corpus.index import id_key
from mme5core.durable import sync_file, wait_until_seen, write_json
from mme5core.errors import WorkFailed
from mme5core.readers import CorpusRow, ReadOptions, read_rows
from mme5core.storage import AnyPath, locate
from mme5core.tasks import Item, Runner, run_here
from mme5core.types import Content, Rejected

STORED = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("images", pa.list_(pa.large_binary())),
        ("instruction", pa.string()),
        ("key", pa.binary(8)),  # equal for equal contents
    ]
)
ROWS_AT_ONCE = 64
REPORT = "report.json"


class ContentTable:
    """Contents by position.

    Args:
        files: of STORED, in their order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        tables = [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]
        self._table = pa.concat_tables(tables) if tables else STORED.empty_table()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def ids(self) -> pa.Array:
        """All ids, in their order; large strings, since together they may have more than 2 GiB."""
        chunks = self._table["id"].cast(pa.large_string()).chunks
        return pa.concat_arrays([pa.array([], pa.large_string()), *chunks])

    def id_of(self, position: int) -> str:
        return str(self._table["id"][position].as_py())

    def content(self, position: int) -> Content:
        row = self._table.slice(position, 1).to_pylist()[0]
        return Content(row["text"], images=row["images"] or ())

    def instruction_of(self, position: int) -> str | None:
        instruction: str | None = self._table["instruction"][position].as_py()
        return instruction

    def keys(self) -> list[bytes]:
        """Equal for equal contents."""
        keys: list[bytes] = self._table["key"].to_pylist()
        return keys


@dataclass(frozen=True, slots=True)
class ReadContents:
    """A task: the contents of a shard, into a file of STORED.

    Args:
        wanted: a file of rising `id_hash`es, or None for all rows.
        limit: most rows to read.
    """

    folder: Path
    wanted: Path | None
    options: ReadOptions
    limit: int | None = None

    def __call__(self, item: Item) -> Iterator[Item]:
        """Reports the "file", and the "read" and "refused" rows of the shard."""
        wanted = None
        if self.wanted is not None:
            wait_until_seen(self.wanted.is_file, self.folder)
            wanted = np.load(self.wanted)
        options = replace(self.options, label=item["label"])
        rows = islice(read_rows(locate(item["path"]), options), self.limit)
        file = self.folder / f"{uuid.uuid4().hex}.arrow"  # by chance: a task may run twice at once
        refused: list[Rejected] = []
        num_read, waiting = 0, list[Item]()
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, STORED) as writer:
            for row in rows:
                num_read += 1
                is_broken = row.refused is not None and row.refused.reason == "broken_shard"
                if wanted is not None and not is_broken and not _is_in(id_hash(row.id), wanted):
                    continue
                if row.refused is not None:
                    refused.append(row.refused)
                    continue
                waiting.append(_stored(row))
                if len(waiting) == ROWS_AT_ONCE:
                    writer.write_table(pa.Table.from_pylist(waiting, STORED))
                    waiting = []
            writer.write_table(pa.Table.from_pylist(waiting, STORED))
        sync_file(file)
        yield {
            "shard": item["shard"],
            "file": file.name,
            "read": num_read,
            "refused": [asdict(rejected) for rejected in refused],
        }


def read_contents(
    shards: Sequence[AnyPath],
    labels: Sequence[str],
    folder: Path,
    *,
    options: ReadOptions,
    wanted: np.ndarray | None = None,
    limit: int | None = None,
    run: Runner = run_here,
) -> tuple[ContentTable, list[Rejected], int]:
    """The contents of a corpus, what was refused, and how many rows were read; kept in the folder.

    Args:
        labels: of the shards, see `readers.shards.labels`.
        wanted: `id_hash` of the ids; None: all rows.
        limit: most rows to read, over all shards in their order.

    Raises:
        WorkFailed: some rows are wanted, and a shard cannot be read to its end: they may be behind the break.
    """
    report = folder / REPORT
    if not report.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        reports = _read(shards, labels, folder, options, wanted, limit, run)
        for rejected in (row for one in reports for row in one["refused"] if row["reason"] == "broken_shard"):
            if wanted is not None:
                raise WorkFailed(
                    f"{rejected['id']} cannot be read to its end ({rejected['detail']}); mend or remove it"
                )
        write_json(report, {"shards": sorted(reports, key=lambda one: int(one["shard"]))})
    reports = json.loads(report.read_text())["shards"]
    files = [folder / one["file"] for one in reports]
    for file in files:
        wait_until_seen(file.is_file, folder)
    refused = [Rejected(**row) for one in reports for row in one["refused"]]
    return ContentTable(files), refused, sum(one["read"] for one in reports)


def repeated_ids(ids: pa.Array) -> np.ndarray:
    """bool: which ids have stood before."""
    first = np.ones(len(ids), np.bool_)
    if len(ids):
        codes = ids.dictionary_encode().indices.to_numpy()
        first[:] = False
        first[np.unique(codes, return_index=True)[1]] = True
    return ~first


def positions_of(column: pa.ChunkedArray | pa.Array, ids: pa.Array) -> np.ndarray:
    """int64: the first place of each entry among the ids; -1 where it is none."""
    at = pc.index_in(column.cast(ids.type), value_set=ids, skip_nulls=True)
    return np.asarray(pc.fill_null(at, -1)).astype(np.int64)


def _read(
    shards: Sequence[AnyPath],
    labels: Sequence[str],
    folder: Path,
    options: ReadOptions,
    wanted: np.ndarray | None,
    limit: int | None,
    run: Runner,
) -> list[Item]:
    ids = None
    if wanted is not None:
        ids = folder / "wanted.npy"
        np.save(ids, wanted)
    items: list[Item] = [
        {"shard": n, "path": str(path), "label": label}
        for n, (path, label) in enumerate(zip(shards, labels, strict=True))
    ]
    if limit is None:
        return list(run(ReadContents(folder, ids, options), items))
    reports: list[Item] = []
    for item in items:
        left = limit - sum(one["read"] for one in reports)
        if left <= 0:
            break
        reports += run(ReadContents(folder, ids, options, left), [item])
    return reports


def _stored(row: CorpusRow) -> Item:
    pictures = [picture for picture in row.pictures if isinstance(picture, bytes)]
    assert len(pictures) == len(row.pictures), "pictures at servers are fetched as rows are read"
    key = document_key(Content(row.text, images=pictures))
    return {"id": row.id, "text": row.text, "images": pictures, "instruction": row.instruction, "key": key}


def id_hash(row_id: str) -> int:
    """64 bits of an id, equal where ids are. Two ids may share them: then a row is kept that nobody asked for."""
    return int.from_bytes(id_key(row_id)[:8], "little")


def _is_in(key: int, sorted_keys: np.ndarray) -> bool:
    place = int(np.searchsorted(sorted_keys, np.uint64(key)))
    return place < len(sorted_keys) and int(sorted_keys[place]) == key
