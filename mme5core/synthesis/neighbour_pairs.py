"""Pictures of a corpus that are near each other: a neighbours folder, joined with the rows of the corpus."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.corpus.index import id_key
from mme5core.corpus.out_of_core import KeyTable, write_table
from mme5core.durable import wait_until_seen
from mme5core.errors import InputError
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath, locate, parquet_file
from mme5core.synthesis.plan import Neighbour
from mme5core.tables import column_tables, errors_name_setting
from mme5core.tasks import Item, Runner

ROWS_PER_TASK, ROWS_PER_RUN = 1 << 21, 1 << 20

# Pairs of two usable pictures: `query` and `row` are the rows of the query and of the candidate.
_PAIRS = pa.schema(
    [
        ("query", pa.int64()),
        ("rank", pa.int32()),
        ("source", pa.string()),
        ("score", pa.float32()),
        ("id", pa.string()),
        ("row", pa.int64()),
    ]
)
_ORDER = [("query", "ascending"), ("rank", "ascending"), ("source", "ascending")]


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs in sorted runs on disk, mapped. `queries` holds the first and last query of each run."""

    folder: Path
    queries: dict[str, tuple[int, int]]
    num_pairs: int

    def by_query(self, start: int, stop: int) -> Iterator[tuple[int, list[tuple[Neighbour, int]]]]:
        """(row, its neighbours with their rows) for each row from `start` to `stop` that has neighbours.

        Rows rise; the neighbours come nearest first within each source.
        """
        near = pa.concat_tables([_PAIRS.empty_table(), *self._slices(start, stop)]).sort_by(_ORDER)
        queries = near["query"].to_numpy()
        ends = [*(np.flatnonzero(np.diff(queries)) + 1).tolist(), len(queries)]
        begun = 0
        for end in ends if len(queries) else ():
            own = near.slice(begun, end - begun)
            columns = (own[name].to_pylist() for name in ("id", "score", "source", "row"))
            yield (
                int(queries[begun]),
                [(Neighbour(id_, score or 0.0, source or ""), row) for id_, score, source, row in zip(*columns)],  # noqa: B905
            )
            begun = end

    def _slices(self, start: int, stop: int) -> Iterator[pa.Table]:
        for name, (first, last) in self.queries.items():
            if first < stop and last >= start:
                run = pa.ipc.open_file(pa.memory_map(str(self.folder / name))).read_all()
                begin, end = np.searchsorted(run["query"].to_numpy(), [start, stop])
                yield run.slice(begin, end - begin)


def join_pairs(files: Sequence[AnyPath], keys: KeyTable, folder: Path, run: Runner) -> Pairs:
    """Join the files of a neighbours folder with the pictures of these keys.

    Raises:
        InputError: not one pair has both of its pictures there.
    """
    folder.mkdir()
    queries: dict[str, tuple[int, int]] = {}
    num_read = num_pairs = 0
    first = ""
    for report in run(JoinPairs(keys, folder), list(_items(files))):
        queries |= {name: (low, high) for name, low, high in report["runs"]}
        num_read, num_pairs = num_read + report["read"], num_pairs + report["pairs"]
        first = first or report["first"]
    if not num_read:
        raise InputError("neighbours: there is not one pair in it")
    if not num_pairs:
        raise InputError(
            f"neighbours: none of its {num_read:,} pairs is of two pictures of the input (the first is {first!r}): is "
            "it of another corpus?"
        )
    wait_until_seen(lambda: queries.keys() <= {file.name for file in folder.iterdir()}, folder)
    return Pairs(folder, dict(sorted(queries.items())), num_pairs)


def _items(files: Sequence[AnyPath]) -> Iterator[Item]:
    """Row groups of a file, about ROWS_PER_TASK rows together."""
    number = 0
    for file in files:
        with errors_name_setting("neighbours", file):
            metadata = parquet_file(file).metadata
        groups: list[int] = []
        num_rows = 0
        for group in range(metadata.num_row_groups):
            groups.append(group)
            num_rows += metadata.row_group(group).num_rows
            if num_rows >= ROWS_PER_TASK or group + 1 == metadata.num_row_groups:
                yield {"number": number, "path": str(file), "groups": groups}
                number, groups, num_rows = number + 1, [], 0


@dataclass(frozen=True, slots=True)
class JoinPairs:
    """The task: joins row groups of a file and writes sorted runs of pairs."""

    keys: KeyTable
    folder: Path

    def __call__(self, item: Item) -> Iterator[Item]:
        report: Item = {"read": 0, "pairs": 0, "first": "", "runs": []}
        waiting = [_PAIRS.empty_table()]
        num_waiting = 0

        def write_run() -> None:
            nonlocal num_waiting
            table = pa.concat_tables(waiting).sort_by(_ORDER)
            if len(table):
                name = f"{item['number']:06d}-{len(report['runs']):04d}.arrow"
                temporary = self.folder / f".{uuid.uuid4().hex}"
                write_table(table, temporary)
                temporary.rename(self.folder / name)
                report["runs"].append([name, table["query"][0].as_py(), table["query"][-1].as_py()])
            del waiting[1:]
            num_waiting = 0

        for read in column_tables(locate(item["path"]), NEIGHBOURS, "neighbours", groups=item["groups"]):
            if len(read) and not report["first"]:
                report["first"] = f"{read['query_id'][0]} {read['candidate_id'][0]}"
            pairs = self._joined(read)
            waiting.append(pairs)
            num_waiting += len(pairs)
            report["read"], report["pairs"] = report["read"] + len(read), report["pairs"] + len(pairs)
            if num_waiting >= ROWS_PER_RUN:
                write_run()
        write_run()
        yield report

    def _joined(self, read: pa.Table) -> pa.Table:
        queries, candidates = (self.keys.rows_of(_keys_of_ids(read[name])) for name in ("query_id", "candidate_id"))
        places = np.flatnonzero((queries >= 0) & (candidates >= 0) & (queries != candidates))
        chosen = read.take(pa.array(places))
        columns = [
            pa.array(queries[places]),
            chosen["rank"],
            chosen["source"],
            chosen["score"],
            chosen["candidate_id"],
            pa.array(candidates[places]),
        ]
        return pa.Table.from_arrays(columns, schema=_PAIRS)


def _keys_of_ids(column: pa.ChunkedArray) -> np.ndarray:
    """uint64 [N, 2]: the keys of a column of ids; each distinct id is hashed once."""
    encoded = pc.fill_null(column, "").combine_chunks().dictionary_encode()
    keys = b"".join(id_key(image_id) for image_id in encoded.dictionary.to_pylist())
    return np.frombuffer(keys, "<u8").reshape(-1, 2)[encoded.indices.to_numpy()]
