"""Which candidates of each query are judged: neighbours joined with queries and candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.corpus.content_table import id_hash, positions_of
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.tables import column_tables

HASHES_WAITING = 1 << 22


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """Candidates by their positions; mapped, and travels to the workers.

    Args:
        starts: int64 [samples + 1]: where each query's candidates begin in the file, nearest first.
        num_unknown: neighbours of a query or a candidate that is not there.
    """

    file: Path
    starts: np.ndarray
    num_unknown: int

    def candidates(self, position: int) -> np.ndarray:
        """int64: the positions of a query's candidates, nearest first."""
        low, high = self.starts[position : position + 2]
        if low == high:
            return np.zeros(0, np.int64)
        return np.asarray(np.memmap(self.file, np.int64, "r")[low:high])


def named_candidates(query_ids: pa.Array, files: Sequence[AnyPath]) -> np.ndarray:
    """uint64, rising: `id_hash` of the candidates that the neighbours of some queries name."""
    named, waiting, num_waiting = np.zeros(0, np.uint64), list[np.ndarray](), 0
    for neighbours in files:
        for table in column_tables(neighbours, NEIGHBOURS, "neighbours"):
            is_own = pc.is_in(table["query_id"].cast(query_ids.type), value_set=query_ids)
            ids = pc.unique(table["candidate_id"].filter(is_own)).drop_null().to_pylist()
            waiting.append(np.array([id_hash(one) for one in ids], np.uint64))
            num_waiting += len(ids)
            if num_waiting > HASHES_WAITING:
                named, waiting, num_waiting = np.unique(np.concatenate([named, *waiting])), [], 0
    return np.unique(np.concatenate([named, *waiting]))


def plan_judging(
    ids: pa.Array,
    files: Sequence[AnyPath],
    file: Path,
    candidate_ids: pa.Array | None = None,
    *,
    positive_keys: Sequence[bytes] | None = None,
    candidate_keys: Sequence[bytes] | None = None,
) -> JudgePlan:
    """Join neighbours with queries and candidates by their ids.

    Args:
        ids: of the queries, in their order.
        candidate_ids: None: the candidates are samples too, of these ids.
        positive_keys, candidate_keys: of contents (`document_key`). Where both are given, no candidate has the content
            of its query's positive, and of several with one content only the nearest stays.
        files: of neighbours; rows of several sources of one query and candidate count once, at their best rank.
    """
    queries, candidates, ranks = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    num_unknown = 0
    for neighbours in files:
        for table in column_tables(neighbours, NEIGHBOURS, "neighbours"):
            query = positions_of(table["query_id"], ids)
            candidate = positions_of(table["candidate_id"], ids if candidate_ids is None else candidate_ids)
            is_known = (query >= 0) & (candidate >= 0)
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
    query, candidate = query[order], candidate[order]
    if positive_keys is not None and candidate_keys is not None:
        is_distinct = _distinct(query, candidate, positive_keys, candidate_keys)
        query, candidate = query[is_distinct], candidate[is_distinct]
    candidate.tofile(file)
    return JudgePlan(file, np.searchsorted(query, np.arange(len(ids) + 1)), num_unknown)


def _distinct(
    query: np.ndarray, candidate: np.ndarray, positive_keys: Sequence[bytes], candidate_keys: Sequence[bytes]
) -> np.ndarray:
    """bool: which pairs, sorted by query, neither hold the query's positive nor a content of an earlier pair of it."""
    codes = pa.array([*positive_keys, *candidate_keys], pa.binary()).dictionary_encode().indices.to_numpy()
    positive_code, candidate_code = codes[: len(positive_keys)][query], codes[len(positive_keys) :][candidate]
    pairs = np.stack([query, candidate_code.astype(np.int64)], axis=1)
    is_first = np.zeros(len(query), np.bool_)
    is_first[np.unique(pairs, axis=0, return_index=True)[1]] = True
    distinct: np.ndarray = is_first & (candidate_code != positive_code)
    return distinct
