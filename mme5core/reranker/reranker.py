"""A reranker: scores of a query's candidates, one by one or as a list, with any vision-language model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mme5core.encoder.prepare import OnBad
from mme5core.images import BadImage
from mme5core.judge.answering import AnsweringModel
from mme5core.judge.local import Judge
from mme5core.reranker.listwise import ListwiseScores
from mme5core.types import Content

Method = Literal["pointwise", "listwise"]


class Reranker:
    """
    Args:
        method: "pointwise": the judge's question, asked about every candidate; "listwise": one question about all.

    Raises:
        ValueError: the tokenizer cannot tell the answers apart, or there is no such method.
    """

    def __init__(self, model: AnsweringModel, method: Method = "pointwise") -> None:
        if method not in ("pointwise", "listwise"):
            raise ValueError(f"unknown method {method!r}; known: pointwise, listwise")
        self.method = method
        self._judge = Judge(model) if method == "pointwise" else None
        self._list = ListwiseScores(model)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        dtype: str = "auto",
        *,
        method: Method = "pointwise",
        **options: Any,
    ) -> Reranker:
        """
        Args:
            path, device, dtype: as `AnsweringModel.load`; so are the other options.

        Raises:
            ValueError: as `AnsweringModel.load`; or as `Reranker`.
        """
        return cls(AnsweringModel.load(path, device, dtype, **options), method)

    def scores(
        self,
        query: Content,
        candidates: Sequence[Content],
        instruction: str | None = None,
        *,
        batch_size: int = 16,
        max_batch_tokens: int = 16_384,
    ) -> np.ndarray:
        """How well each candidate meets the query: float32 [K], higher is better.

        Pointwise the log-odds of Yes: the share of Yes would give all sure candidates the same score. Listwise the
        logarithm of the probability of the candidate's number (`ListwiseScores`), which counts within one list only.

        Raises:
            ValueError: a picture cannot be read, or a prompt has more than the model takes.
        """
        problems: list[tuple[int, BadImage]] = []
        scores = self.scores_or_nan(
            query,
            candidates,
            instruction,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            on_bad=lambda place, error: problems.append((place, error)),
        )
        for place, error in sorted(problems, key=lambda problem: problem[0]):
            what = f"pair {place}" if self._judge is not None else f"the list of {len(candidates)} candidates"
            raise ValueError(f"{what}: {error}")
        return scores

    def scores_or_nan(
        self,
        query: Content,
        candidates: Sequence[Content],
        instruction: str | None = None,
        *,
        batch_size: int = 16,
        max_batch_tokens: int = 16_384,
        on_bad: OnBad = lambda place, error: None,
    ) -> np.ndarray:
        """As `scores`, with NaN for what cannot be shown: a candidate, or, listwise, all of them.

        Args:
            on_bad: called with the place of each such candidate; of a list, with that of the first.
        """
        if self._judge is not None:
            pairs = [(query, candidate) for candidate in candidates]
            return self._judge.log_odds(
                pairs,
                instruction,
                batch_size=batch_size,
                max_batch_tokens=max_batch_tokens,
                on_bad=on_bad,
            )
        try:
            return self._list.scores(query, candidates, instruction, max_batch_tokens=max_batch_tokens)
        except BadImage as error:
            on_bad(0, error)
            return np.full(len(candidates), np.nan, np.float32)
