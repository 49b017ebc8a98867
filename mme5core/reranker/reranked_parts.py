"""From mined candidates to reordered ones: the work on one block of queries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from mme5core.corpus.content_table import ContentTable
from mme5core.judge.plan import JudgePlan
from mme5core.model_settings import ModelSettings
from mme5core.parts import NewPart
from mme5core.schemas import NEIGHBOURS
from mme5core.tasks import Item
from mme5core.types import Rejected

if TYPE_CHECKING:
    from mme5core.reranker.reranker import Reranker

SOURCE, UNSCORED = "rerank", "unscored"
"""In the column `source`: candidates with a score of the reranker, and those that follow in the order before."""


@dataclass(frozen=True, slots=True)
class RerankBlock:
    """Reorders the candidates of a block of queries and writes them as a part; travels to the workers.

    Args:
        queries, candidates: files of the `ContentTable`s.
        plan: candidates of each query, in the order before.
        repeated: positions of queries whose id an earlier one has.
        instruction: of queries that bring none.
        folder: of the parts.
    """

    queries: tuple[Path, ...]
    candidates: tuple[Path, ...]
    plan: JudgePlan
    settings: ModelSettings
    repeated: frozenset[int]
    method: Literal["pointwise", "listwise"]
    top_k: int
    instruction: str | None
    folder: Path

    def load(self, device: str) -> tuple[Reranker, ContentTable, ContentTable]:
        """
        Raises:
            ValueError: as `Reranker.load`.
        """
        from mme5core.reranker.reranker import Reranker  # torch, which the driver does not need

        own = self.settings
        reranker = Reranker.load(
            own.model, device, own.dtype, method=self.method, adapter=own.adapter, remote_code=own.remote_code
        )
        return reranker, ContentTable(self.queries), ContentTable(self.candidates)

    def work(self, item: Item, loaded: tuple[Reranker, ContentTable, ContentTable]) -> Item:
        """The report on the queries from "start" to "stop" of an item.

        "pairs" have a score of the reranker, "unshown" are candidates that it could not be shown.
        """
        counts = Counter[str]()
        with NewPart(self.folder, NEIGHBOURS) as part:
            for position in range(item["start"], item["stop"]):
                rows = self._reordered(position, *loaded, counts)
                if isinstance(rows, Rejected):
                    part.refused.append(rows)
                else:
                    counts["kept"] += 1
                    part.writer.write_table(pa.Table.from_pylist(rows, NEIGHBOURS))
            return item | {name: counts[name] for name in ("kept", "pairs", "unshown")} | part.close()

    def _reordered(
        self, position: int, reranker: Reranker, queries: ContentTable, candidates: ContentTable, counts: Counter[str]
    ) -> list[dict[str, Any]] | Rejected:
        query_id, positions = queries.id_of(position), self.plan.candidates(position)
        if position in self.repeated:
            return Rejected(query_id, "duplicate_id")
        if not len(positions):
            return Rejected(query_id, "no_candidate", "no neighbour of it is among the candidates")
        first = positions[: self.top_k]
        scores = reranker.scores_or_nan(
            queries.content(position),
            [candidates.content(int(candidate)) for candidate in first],
            queries.instruction_of(position) or self.instruction,
            batch_size=self.settings.max_batch_rows,
            max_batch_tokens=self.settings.max_batch_tokens,
        )
        num_scored = int((~np.isnan(scores)).sum())
        counts.update(pairs=num_scored, unshown=len(first) - num_scored)
        order = reordered(scores)
        ranked = [(int(first[place]), scores[place]) for place in order.tolist()]
        ranked += [(int(candidate), np.nan) for candidate in positions[self.top_k :]]
        return [
            {
                "query_id": query_id,
                "candidate_id": candidates.id_of(candidate),
                "rank": rank,
                "score": None if np.isnan(score) else float(score),
                "source": UNSCORED if np.isnan(score) else SOURCE,
            }
            for rank, (candidate, score) in enumerate(ranked, start=1)
        ]


def reordered(scores: np.ndarray) -> np.ndarray:
    """Places by falling score; ties, and at the end those without a score, in the order that they have.

    >>> reordered(np.array([0.1, np.nan, 0.9, 0.1, np.nan])).tolist()
    [2, 0, 3, 1, 4]
    >>> reordered(np.tile([0.0, 1.0], 50)).tolist() == [*range(1, 100, 2), *range(0, 100, 2)]
    True
    """
    return np.argsort(-scores, kind="stable")
