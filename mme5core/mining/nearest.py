"""The best candidates of each query, exactly, while candidates come in chunks.

Shapes: B queries, C candidates of a chunk, K kept ones, M those that may be added, G groups of a chunk.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LAST = torch.iinfo(torch.int64).max
"""The place of a candidate that is none."""
GROUP = 64
HITS_PER_PLACE = 8
"""How many candidates of a chunk may compete for each place before the chunk is taken in halves."""


class Nearest:
    """The K candidates of highest score of each of B queries; of equal scores those whose place is lower.

    Args:
        floor: candidates of a lower score are never kept.
    """

    def __init__(self, num_queries: int, k: int, *, device: torch.device, floor: float = -torch.inf) -> None:
        self._k, self._floor = k, floor
        self.score_BK = torch.full((num_queries, k), -torch.inf, device=device)
        self.place_BK = torch.full((num_queries, k), LAST, device=device)

    def add(self, score_BC: Tensor, place_C: Tensor, *, first: int = 0) -> None:
        """Take a chunk of candidates into account.

        Args:
            score_BC: float32, of some of the queries, from number `first` on; -inf: not a candidate of that query.
            place_C: int64, different for all candidates of all chunks.
        """
        kept_BK = self.score_BK[first : first + len(score_BC)]
        floor_B = kept_BK.amin(1).clamp_min(self._floor)
        hits = _at_least(score_BC, floor_B, self._k, most=self._most_hits(len(score_BC)))
        if hits is None:  # many equal scores: what the first half leaves rules most of the second out
            half = score_BC.shape[1] // 2
            self.add(score_BC[:, :half], place_C[:half], first=first)
            self.add(score_BC[:, half:], place_C[half:], first=first)
            return
        query_H, candidate_H = self._before_ties(score_BC, place_C, *hits, first=first)
        if not len(query_H):
            return
        row_R, begun_R, size_R = _runs(query_H)
        place_in_row_H = torch.arange(len(query_H), device=query_H.device) - begun_R.repeat_interleave(size_R)
        number_H = torch.arange(len(row_R), device=query_H.device).repeat_interleave(size_R)
        shape = len(row_R), int(size_R.max())
        score_RM = torch.full(shape, -torch.inf, device=score_BC.device)
        place_RM = torch.full(shape, LAST, device=score_BC.device)
        score_RM[number_H, place_in_row_H] = score_BC[query_H, candidate_H]
        place_RM[number_H, place_in_row_H] = place_C[candidate_H]
        rows = row_R + first
        score_RM = torch.cat([self.score_BK[rows], score_RM], dim=1)
        place_RM = torch.cat([self.place_BK[rows], place_RM], dim=1)
        self.score_BK[rows], self.place_BK[rows] = _best(score_RM, place_RM, self._k)

    def _most_hits(self, num_queries: int) -> int:
        return HITS_PER_PLACE * self._k * num_queries

    def _before_ties(
        self, score_BC: Tensor, place_C: Tensor, query_H: Tensor, candidate_H: Tensor, *, first: int
    ) -> tuple[Tensor, Tensor]:
        """The hits without those that only equal the lowest kept score and come after all that have it."""
        kept = slice(first, first + len(score_BC))
        lowest_B = self.score_BK[kept].amin(1)
        is_lowest_BK = self.score_BK[kept] == lowest_B[:, None]
        last_B = self.place_BK[kept].masked_fill(~is_lowest_BK, -1).amax(1)
        is_new_H = (score_BC[query_H, candidate_H] > lowest_B[query_H]) | (place_C[candidate_H] < last_B[query_H])
        return query_H[is_new_H], candidate_H[is_new_H]

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 and places int64 [B, K], best first; where a query has fewer, -inf and LAST."""
        score_BK, place_BK = self.score_BK.cpu().numpy(), self.place_BK.cpu().numpy()
        order = np.lexsort((place_BK, -score_BK), axis=-1)
        return np.take_along_axis(score_BK, order, 1), np.take_along_axis(place_BK, order, 1)


def _at_least(score_BC: Tensor, floor_B: Tensor, k: int, *, most: int) -> tuple[Tensor, Tensor] | None:
    """(query, candidate) of all that may be among the k best, queries rising: those at or above the floor, and at or
    above the k-th highest of the maxima of groups of candidates, each of which is another candidate.

    None if there are more than `most`, and it would help to look at fewer candidates at once.
    """
    num_candidates = score_BC.shape[1]
    size = GROUP
    while size > 1 and num_candidates < 2 * k * size:
        size //= 2
    whole = num_candidates // size * size
    group_BGS = score_BC[:, :whole].unflatten(1, (-1, size))
    best_BG = group_BGS.amax(2)
    if best_BG.shape[1] >= k:
        floor_B = torch.maximum(floor_B, best_BG.topk(k, sorted=False).values.amin(1))
    # -inf is no candidate, however low the floor is.
    floor_B = floor_B.clamp_min(torch.finfo(score_BC.dtype).min)
    query_N, group_N = (best_BG >= floor_B[:, None]).nonzero(as_tuple=True)
    near_NS = group_BGS[query_N, group_N] >= floor_B[query_N, None]
    if num_candidates > 2 * max(k, GROUP) and int(near_NS.sum()) > most:
        return None
    which_H, place_H = near_NS.nonzero(as_tuple=True)
    query_H, candidate_H = query_N[which_H], group_N[which_H] * size + place_H
    if whole < num_candidates:
        query_T, candidate_T = (score_BC[:, whole:] >= floor_B[:, None]).nonzero(as_tuple=True)
        query_H, order = torch.cat([query_H, query_T]).sort(stable=True)
        candidate_H = torch.cat([candidate_H, candidate_T + whole])[order]
    return query_H, candidate_H


def _runs(rising: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a rising tensor: its distinct numbers, where each begins, and how often it stands there."""
    distinct, sizes = rising.unique_consecutive(return_counts=True)
    return distinct, sizes.cumsum(0) - sizes, sizes


def _best(score_RM: Tensor, place_RM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, in any order; of equal scores those of lower places."""
    score_RK, kept_RK = score_RM.topk(k, dim=1, sorted=False)
    place_RK = place_RM.gather(1, kept_RK)
    lowest_R1 = score_RK.amin(1, keepdim=True)
    is_tied_R = ((score_RM == lowest_R1).sum(1) > (score_RK == lowest_R1).sum(1)) & lowest_R1[:, 0].isfinite()
    if is_tied_R.any():
        scores, places = score_RM[is_tied_R].cpu().numpy(), place_RM[is_tied_R].cpu().numpy()
        order = np.lexsort((places, -scores), axis=-1)[:, :k]
        score_RK[is_tied_R] = torch.as_tensor(np.take_along_axis(scores, order, 1), device=score_RM.device)
        place_RK[is_tied_R] = torch.as_tensor(np.take_along_axis(places, order, 1), device=score_RM.device)
    return score_RK, place_RK
