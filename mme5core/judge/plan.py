"""Which candidates of each sample are judged: neighbours joined with the samples whose positives they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.tables import column_tables


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """Candidates by the positions of the samples whose positives they are; mapped, and travels to the workers.

    Args:
        starts: int64 [samples + 1]: where each sample's candidates begin in the file, nearest first.
        num_unknown: neighbours of a query or a candidate that is no sample.
    """

    file: Path
    starts: np.ndarray
    num_unknown: int

    def candidates(self, position: int) -> np.ndarray:
        """int64: the positions of a sample's candidates, nearest first."""
        low, high = self.starts[position : position + 2]
        if low == high:
            return np.zeros(0, np.int64)
        return np.asarray(np.memmap(self.file, np.int64, "r")[low:high])


def plan_judging(ids: pa.Array, files: Sequence[AnyPath], file: Path) -> JudgePlan:
    """Join neighbours with samples by their ids.

    Args:
        ids: of the samples, in their order.
        files: of neighbours; rows of several sources of one query and candidate count once, at their best rank.
    """
    queries, candidates, ranks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    num_unknown = 0
    for neighbours in files:
        for table in column_tables(neighbours, NEIGHBOURS, "neighbours"):
            query, candidate = (_positions(table[name], ids) for name in ("query_id", "candidate_id"))
            is_known = (query >= 0) & (candidate >= 0) & (query != candidate)
            num_unknown += int(((query < 0) | (candidate < 0)).sum())
            queries.append(query[is_known])
            candidates.append(candidate[is_known])
            ranks.append(pc.fill_null(table["rank"], np.iinfo(np.int32).max).to_numpy()[is_known])
    query, candidate, rank = np.concatenate(queries), np.concatenate(candidates), np.concatenate(ranks)
    order = np.lexsort((rank, candidate, query))
    query, candidate, rank = query[order], candidate[order], rank[order]
    is_first = np.ones(len(query), np.bool_)
    is_first[1:] = (query[1:] != query[:-1]) | (candidate[1:] != candidate[:-1])
    query, candidate, rank = query[is_first], candidate[is_first], rank[is_first]
    order = np.lexsort((candidate, rank, query))
    candidate[order].tofile(file)
    return JudgePlan(file, np.searchsorted(query[order], np.arange(len(ids) + 1)), num_unknown)


def _positions(column: pa.ChunkedArray, ids: pa.Array) -> np.ndarray:
    """int64: the place of each entry among the ids; -1 where it is none."""
    at = pc.index_in(column, value_set=ids, skip_nulls=True)
    return np.asarray(pc.fill_null(at, -1)).astype(np.int64)
