"""A pointwise reranker: for each candidate the logit of Yes less that of No, with any vision-language model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mme5core.judge.local import Judge
from mme5core.types import Content


class Reranker:
    """A judge's question, asked about every candidate of a query."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "auto", dtype: str = "auto", **options: Any) -> Reranker:
        """
        Args:
            path, device, dtype: as `Judge.load`; so are the other options.

        Raises:
            ValueError: as `Judge.load`.
        """
        return cls(Judge.load(path, device, dtype, **options))

    def scores(
        self,
        query: Content,
        candidates: Sequence[Content],
        instruction: str | None = None,
        *,
        batch_size: int = 16,
        max_batch_tokens: int = 16_384,
    ) -> np.ndarray:
        """The log-odds of Yes for each candidate: float32 [K], higher is better.

        Log-odds, not the share of Yes, which would give all sure candidates the same score.

        Raises:
            ValueError: a picture cannot be read, or a pair has more than the model takes; naming its place.
        """
        pairs = [(query, candidate) for candidate in candidates]
        return self._judge.log_odds(pairs, instruction, batch_size=batch_size, max_batch_tokens=max_batch_tokens)
