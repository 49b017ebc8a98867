"""The task that finds the neighbours of a block of queries and writes them as one part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mme5core.ahead import ahead
from mme5core.mining.approximate import ApproximateIndex
from mme5core.mining.candidate_index import CandidateIndex
from mme5core.mining.positives import Positives, positives_of
from mme5core.mining.queries import TILE, Queries, usable
from mme5core.mining.rules import OwnPicture, Rule
from mme5core.mining.vector_files import VectorFiles, matrix
from mme5core.parts import NewPart
from mme5core.processors import threads_per_process
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.tables import of_size
from mme5core.tasks import Item
from mme5core.types import Rejected

if TYPE_CHECKING:
    from mme5core.mining.query_block import QueryBlock

CHUNK_BYTES, CHUNK_ROWS = 1 << 26, 1 << 14
"""Of candidates: read at once, and at most so many."""


@dataclass(frozen=True, slots=True)
class MineBlock:
    """The task: its item names the queries "start" to "stop".

    Args:
        rules: each gives rows of its own, with its name as `source`.
        pool: a column of both sets, for rules that look at pools.
        positives: files of pairs; of none, nothing is known of positives.
        folder: of the parts.
        tasks_here: tasks that share a node's processors; None: each has an accelerator.
        approximate: look at shortlists only; None: at all candidates.
    """

    queries: VectorFiles
    candidates: VectorFiles
    index: CandidateIndex
    rules: tuple[Rule, ...]
    own_picture: OwnPicture
    pool: str | None
    positives: tuple[AnyPath, ...]
    folder: Path
    tasks_here: int | None = 1
    approximate: ApproximateIndex | None = None

    def __call__(self, item: Item) -> Iterator[Item]:
        import torch

        from mme5core.mining.query_block import QueryBlock

        if self.tasks_here is not None:
            torch.set_num_threads(threads_per_process(self.tasks_here))
        queries, refused = usable(self._read(item["start"], item["stop"]))
        positives = self._positives(queries)
        device = torch.device("cpu" if self.tasks_here is not None else "cuda")
        block = QueryBlock(
            queries, self.index, self.rules, own_picture=self.own_picture, positives=positives, device=device
        )
        num_unusable = self._look_through(block, queries)
        rows = pa.concat_tables(block.neighbours())
        is_without = np.ones(len(queries.ids), np.bool_)
        is_without[rows["query"].to_numpy()] = False
        refused += self._without_neighbour(queries, positives, is_without)
        with NewPart(self.folder, NEIGHBOURS) as part:
            part.refused += refused
            part.writer.write_table(rows.sort_by(_ORDER).select(NEIGHBOURS.names))
            kept = {"kept": int((~is_without).sum()), "rows": len(rows), "unusable": num_unusable}
            yield item | kept | part.close()

    def _look_through(self, block: QueryBlock, queries: Queries) -> int:
        """Show the block all candidates, or a shortlist of each tile; returns how many have no usable vector."""
        num_unusable = start = 0
        if self.approximate is None:
            for table in ahead(self._chunks()):
                num_unusable += block.look_at(start, table, table[self.pool] if self.pool else None)
                start += len(table)
            return num_unusable
        threads = None if self.tasks_here is None else threads_per_process(self.tasks_here)
        index, num_ranked = self.approximate.opened(threads), max(rule.num_ranked for rule in self.rules)
        for first in range(0, len(queries.ids), TILE):
            tile = range(first, min(first + TILE, len(queries.ids)))
            rows = self.approximate.shortlisted(index, queries.vectors[tile.start : tile.stop], num_ranked)
            if len(rows):
                block.look_at_rows(rows, self.approximate.table(rows, self.index), tile)
        return self.approximate.num_unusable

    def _read(self, start: int, stop: int) -> Queries:
        more = ["content_key", "picture_key", *([self.pool] if self.pool else [])]
        more = [name for name in more if self.queries.has([name])]
        vectors = np.empty((stop - start, self.queries.width), np.float32)
        tables = []
        for first, table in self.queries.tables(["id", "embedding", *more], start=start, stop=stop, rows=1 << 12):
            vectors[first - start : first - start + len(table)] = matrix(table, self.queries.width)
            tables.append(table.drop_columns(["embedding"]))
        table = pa.concat_tables(tables)
        columns = {name: pa.concat_arrays(table[name].chunks) for name in more}
        ids = pa.concat_arrays(table["id"].chunks)
        pools = columns.get(self.pool) if self.pool else None
        return Queries(ids, vectors, columns.get("content_key"), columns.get("picture_key"), pools)

    def _positives(self, queries: Queries) -> Positives | None:
        if not self.positives:
            return None
        scores = any(rule.needs_positives for rule in self.rules)
        return positives_of(queries.ids, queries.vectors, self.positives, self.candidates, scores=scores)

    def _without_neighbour(
        self, queries: Queries, positives: Positives | None, is_without: np.ndarray
    ) -> list[Rejected]:
        needs_positives = all(rule.needs_positives for rule in self.rules)
        lacks_positive = np.zeros(len(queries.ids), np.bool_)
        if positives is not None and needs_positives:
            lacks_positive = np.isnan(positives.scores)
        refused = []
        for place in np.flatnonzero(is_without).tolist():
            reason, detail = "no_neighbour", "no candidate passes"
            if lacks_positive[place]:
                reason, detail = "no_positive", "none of its positives is among the candidates"
            refused.append(Rejected(queries.ids[place].as_py(), reason, detail))
        return refused

    def _chunks(self) -> Iterator[pa.Table]:
        """All candidates in chunks of one size, wherever files and row groups end: ties must not depend on it."""
        tables = (table for _, table in self.candidates.tables(self._columns(), rows=self._rows_at_once()))
        first = next(tables)
        yield from of_size(chain([first], tables), self._rows_at_once(), first.schema)

    def _columns(self) -> list[str]:
        known = ["content_key", *([self.pool] if self.pool else [])]
        return ["id", "embedding", *(name for name in known if self.candidates.has([name]))]

    def _rows_at_once(self) -> int:
        rows = min(CHUNK_ROWS, CHUNK_BYTES // (4 * self.candidates.width))
        return max(1, rows // TILE * TILE or rows)


_ORDER = [("query", "ascending"), ("source", "ascending"), ("rank", "ascending")]
