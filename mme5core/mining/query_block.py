"""The search of one block of queries through all candidates.

Shapes: B queries of the block, Q of a tile of it, C candidates of a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from mme5core.mining.candidate_index import CandidateIndex
from mme5core.mining.nearest import LAST, Nearest
from mme5core.mining.pairs import KeyJoin, Pairs, joined
from mme5core.mining.positives import Positives
from mme5core.mining.queries import TILE, Queries
from mme5core.mining.rules import OWN_PICTURE, OwnPicture, Rule
from mme5core.mining.vector_files import is_nobody, matrix

SCORES_ON_CPU, SCORES_ON_GPU = 1 << 24, 1 << 28
"""Similarities that are computed at once."""
_LARGEST = float(np.finfo(np.float32).max)


class QueryBlock:
    """
    Args:
        positives: None where nothing is known of positives.
    """

    def __init__(
        self,
        queries: Queries,
        index: CandidateIndex,
        rules: tuple[Rule, ...],
        *,
        own_picture: OwnPicture,
        positives: Positives | None,
        device: torch.device,
    ) -> None:
        self._queries, self._index, self._rules, self._positives = queries, index, rules, positives
        self._device, self._chunk_rows = device, 0
        self._num_queries = len(queries.ids)
        query_BD = torch.as_tensor(queries.vectors).to(device)
        self._query_BD = F.pad(query_BD, (0, 0, 0, whole_tiles(len(query_BD)) - len(query_BD)))
        self._largest = float(np.abs(queries.vectors).max(initial=0.0))
        number_B = np.arange(len(queries.ids))
        self._excluded = [("id", KeyJoin.of(queries.ids, number_B))]
        if queries.content_keys is not None:
            self._excluded.append(("content_key", KeyJoin.of(queries.content_keys, number_B)))
        if positives is not None:
            self._excluded += [("id", positives.ids), ("content_key", positives.contents)]
        self._pictures = None
        if queries.picture_keys is not None and own_picture != "allow":
            self._pictures = KeyJoin.of(queries.picture_keys, number_B)
        self._forces_picture = own_picture == "force"
        self._picture_score_B = np.full(len(number_B), -np.inf, np.float32)
        self._picture_place_B = np.full(len(number_B), LAST)
        self._caps = [self._cap(rule) for rule in rules]
        self._pool_codes: dict[object, int] = {}
        self._pool_B = None if queries.pools is None else self._codes(queries.pools)
        self._nearest = [
            Nearest(
                len(number_B),
                min(rule.num_ranked, len(index.order)),
                device=device,
                floor=-torch.inf if rule.min_score is None else rule.min_score,
            )
            for rule in rules
        ]

    def look_at(self, start: int, table: pa.Table, pools: pa.ChunkedArray | None = None) -> int:
        """Take a chunk of candidates into account; returns how many of them have no usable vector.

        Args:
            start: the number of the first.
            table: their "id", "embedding" and, where it is known, "content_key".
            pools: of the candidates.
        """
        stop = start + len(table)
        is_repeated, places = self._index.is_repeated(start, stop), self._index.order.places(start, stop)
        self._chunk_rows = max(self._chunk_rows, whole_tiles(len(table)))
        return self._look_at(table, is_repeated, places, pools, range(0, self._num_queries), self._chunk_rows)

    def look_at_rows(self, rows: np.ndarray, table: pa.Table, queries: range) -> int:
        """Take some candidates into account, by their rows, for some queries that begin at a whole tile."""
        places = self._index.order.places_of(rows)
        return self._look_at(table, self._index.are_repeated(rows), places, None, queries, whole_tiles(len(table)))

    def _look_at(
        self,
        table: pa.Table,
        is_repeated: np.ndarray,
        places: np.ndarray,
        pools: pa.ChunkedArray | None,
        queries: range,
        chunk_rows: int,
    ) -> int:
        vector_CD = matrix(table, self._queries.vectors.shape[1])
        is_usable = np.isfinite(vector_CD).all(axis=1) & ~is_nobody(table["id"])
        if not is_usable.all():
            vector_CD = np.where(is_usable[:, None], vector_CD, np.float32(0.0))
        is_none_C = torch.as_tensor(~is_usable | is_repeated).to(self._device)
        place_C = torch.as_tensor(np.array(places)).to(self._device)
        may_overflow = self._largest * float(np.abs(vector_CD).max(initial=0.0)) * vector_CD.shape[1] >= _LARGEST
        candidate_CD = torch.as_tensor(np.require(vector_CD, requirements="W")).to(self._device)
        if len(table) < chunk_rows:
            candidate_CD = F.pad(candidate_CD, (0, 0, 0, chunk_rows - len(table)))
        pool_C = None if pools is None or self._pool_B is None else self._codes(pools)
        excluded, pictures = self._pairs(table, is_repeated)
        for first in range(queries.start, queries.stop, self._queries_at_once(chunk_rows)):
            tile = slice(first, min(first + self._queries_at_once(chunk_rows), whole_tiles(queries.stop)))
            score_QC = (self._query_BD[tile] @ candidate_CD.T)[: queries.stop - first, : len(table)]
            if may_overflow:  # what is no number is no similarity
                torch.nan_to_num_(score_QC, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
            score_QC.masked_fill_(is_none_C, -torch.inf)
            self._exclude(score_QC, first, excluded)
            self._keep_pictures(score_QC, first, pictures, place_C)
            self._exclude(score_QC, first, pictures)
            for rule, cap_B, nearest in zip(self._rules, self._caps, self._nearest, strict=True):
                nearest.add(self._of_rule(score_QC, rule, cap_B, tile, pool_C), place_C, first=first)
        return int((~is_usable).sum())

    def neighbours(self) -> Iterator[pa.Table]:
        """The rows of each rule, as a table of NEIGHBOURS whose "query" is the number in the block."""
        for rule, nearest in zip(self._rules, self._nearest, strict=True):
            score_BK, place_BK = nearest.ranked()
            rank_K = np.arange(1, score_BK.shape[1] + 1)
            is_taken_BK = np.isfinite(score_BK) & (rank_K >= rule.min_rank)
            if rule.max_rank is not None:
                is_taken_BK &= rank_K <= rule.max_rank
            is_taken_BK &= self._after_ranking(rule, score_BK, place_BK, is_taken_BK)
            is_taken_BK &= np.cumsum(is_taken_BK, axis=1) <= rule.top_k
            query, rank = np.nonzero(is_taken_BK)
            yield self._rows(query, rank + 1, score_BK[is_taken_BK], place_BK[is_taken_BK], rule.name)
        if self._forces_picture:
            query = np.flatnonzero(np.isfinite(self._picture_score_B))
            scores, places = self._picture_score_B[query], self._picture_place_B[query]
            yield self._rows(query, np.ones_like(query), scores, places, OWN_PICTURE)

    def _rows(
        self, query: np.ndarray, rank: np.ndarray, scores: np.ndarray, places: np.ndarray, source: str
    ) -> pa.Table:
        return pa.table(
            {
                "query": pa.array(query),
                "query_id": self._queries.ids.take(pa.array(query)),
                "candidate_id": self._index.order.ids(places),
                "rank": pa.array(rank, pa.int32()),
                "score": pa.array(scores, pa.float32()),
                "source": pa.array([source] * len(query), pa.string()),
            }
        )

    def _pairs(self, table: pa.Table, is_repeated: np.ndarray) -> tuple[Pairs, Pairs]:
        """Pairs of this chunk that are excluded, and those of a query with its own picture.

        A repeated content is no candidate at all: as a pair with every query that has it, it would take much memory.
        """
        names = set(table.column_names)
        if "content_key" in names and is_repeated.any():
            keys = pc.if_else(pa.array(is_repeated), pa.scalar(None, pa.binary(16)), table["content_key"])
            table = table.set_column(table.column_names.index("content_key"), "content_key", keys)
        excluded = joined([join.pairs(table[name]) for name, join in self._excluded if name in names])
        has_pictures = self._pictures is not None and "content_key" in names
        pictures = joined([self._pictures.pairs(table["content_key"])] if has_pictures else [])  # type: ignore[union-attr]
        return excluded, pictures

    def _exclude(self, score_QC: Tensor, first: int, pairs: Pairs) -> None:
        query, row = _within(pairs, first, len(score_QC))
        score_QC[query.to(self._device), row.to(self._device)] = -torch.inf

    def _keep_pictures(self, score_QC: Tensor, first: int, pictures: Pairs, place_C: Tensor) -> None:
        if not self._forces_picture:
            return
        query, row = _within(pictures, first, len(score_QC))
        scores = score_QC[query.to(self._device), row.to(self._device)].cpu().numpy()
        places = place_C[row.to(self._device)].cpu().numpy()
        is_one = np.isfinite(scores)  # a repeated content is no candidate
        self._picture_score_B[first + query.numpy()[is_one]] = scores[is_one]
        self._picture_place_B[first + query.numpy()[is_one]] = places[is_one]

    def _cap(self, rule: Rule) -> Tensor | None:
        """[B]: the highest score that a neighbour may have; None: any."""
        cap_B = np.full(len(self._queries.ids), np.inf if rule.max_score is None else rule.max_score, np.float32)
        if self._positives is not None:
            score_B = self._positives.scores
            if rule.relative_margin is not None:
                cap_B = np.fmin(cap_B, score_B - rule.relative_margin * np.abs(score_B))
            if rule.absolute_margin is not None:
                cap_B = np.fmin(cap_B, score_B - rule.absolute_margin)
        return None if np.isinf(cap_B).all() else torch.as_tensor(cap_B).to(self._device)

    def _of_rule(
        self, score_QC: Tensor, rule: Rule, cap_B: Tensor | None, tile: slice, pool_C: Tensor | None
    ) -> Tensor:
        """The scores, -inf where the rule excludes."""
        if cap_B is not None:
            score_QC = score_QC.masked_fill(score_QC > cap_B[tile, None], -torch.inf)
        if rule.pool != "any" and pool_C is not None and self._pool_B is not None:
            is_same_QC = (self._pool_B[tile, None] == pool_C) & (pool_C >= 0)
            score_QC = score_QC.masked_fill(is_same_QC != (rule.pool == "same"), -torch.inf)
        return score_QC

    def _after_ranking(
        self, rule: Rule, score_BK: np.ndarray, place_BK: np.ndarray, is_ranked_BK: np.ndarray
    ) -> np.ndarray:
        is_taken_BK = np.ones_like(is_ranked_BK)
        if self._positives is None:
            return is_taken_BK
        if rule.needs_positives:
            is_taken_BK &= np.isfinite(self._positives.scores)[:, None]
        if rule.above_positive:
            is_taken_BK &= score_BK > self._positives.scores[:, None]
        if rule.modality != "any":
            modality_BK = np.zeros(place_BK.shape, np.uint8)
            modality_BK[is_ranked_BK] = self._index.modalities(place_BK[is_ranked_BK])
            is_same_BK = modality_BK == self._positives.modalities[:, None]
            is_taken_BK &= is_same_BK == (rule.modality == "as_positive")
        return is_taken_BK

    def _codes(self, column: pa.ChunkedArray | pa.Array) -> Tensor:
        """A number for each entry, the same for equal ones; -1 of null, which equals none."""
        codes = self._pool_codes
        numbers = [-1 if e is None else codes.setdefault(e, len(codes)) for e in column.to_pylist()]
        return torch.tensor(numbers, dtype=torch.int64, device=self._device)

    def _queries_at_once(self, num_candidates: int) -> int:
        scores = SCORES_ON_CPU if self._device.type == "cpu" else SCORES_ON_GPU
        return max(TILE, scores // num_candidates // TILE * TILE)


def whole_tiles(count: int) -> int:
    """The next multiple of TILE: the rows and columns that are left over from whole tiles go through other code of the
    matrix product, in which the same two vectors may have a score of another last bit."""
    return -(-count // TILE) * TILE


def _within(pairs: Pairs, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The pairs of some queries, which rise; queries by their numbers among these."""
    queries, rows = pairs
    low, high = np.searchsorted(queries, [first, first + count])
    return torch.as_tensor(queries[low:high] - first), torch.as_tensor(rows[low:high])
