"""A judge in this process: how likely a vision-language model is to answer Yes, from one pass over the prompt.

Shapes: N pairs, B rows of a pass, D width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mme5core.ahead import ahead
from mme5core.encoder.encoder import per_content
from mme5core.encoder.prepare import OnBad, PreparedBatch, prepare_batches
from mme5core.encoder.shared_prefix import states
from mme5core.images import BadImage
from mme5core.judge.answering import AnsweringModel
from mme5core.judge.prompt import NO, YES
from mme5core.types import Content

MAX_TEXT_TOKENS = 2048
"""Of the text of a query or a candidate; what is longer is judged by its beginning."""
Pair = tuple[Content, Content]
"""A query and a candidate."""


class Judge:
    """
    Raises:
        ValueError: the model's tokenizer begins Yes and No with one token.
    """

    def __init__(self, model: AnsweringModel) -> None:
        self.answering, self.module, self.backbone = model, model.module, model.backbone
        self._prompts = model.prompts
        self._yes_no = [ids[0] for ids in self._prompts.answer_token_ids((YES, NO))]
        if self._yes_no[0] == self._yes_no[1]:
            raise ValueError(
                f"the tokenizer begins {YES!r} and {NO!r} with one token, so that the model cannot judge by it"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str = "auto", dtype: str = "auto", **options: Any) -> Judge:
        """A judge from the checkpoint of a vision-language model, a reranker, an adapter folder or a hub id.

        Args:
            path, device, dtype: as `AnsweringModel.load`; so are the other options.

        Raises:
            ValueError: as `AnsweringModel.load`; or the model's tokenizer begins Yes and No with one token.
        """
        return cls(AnsweringModel.load(path, device, dtype, **options))

    def scores(
        self, pairs: Sequence[Pair], instruction: str | Sequence[str | None] | None = None, **options: Any
    ) -> np.ndarray:
        """p(Yes) / (p(Yes) + p(No)) at the first position of the answer: float32 [N] in (0, 1).

        From logits in float32, without sampling and without penalties (UniME-V2, arXiv 2510.13515, section 3.2, whose
        released scores carry a repetition penalty of 1.05).

        Args, Raises: as `log_odds`.
        """
        return yes_share(self.log_odds(pairs, instruction, **options))

    def log_odds(
        self,
        pairs: Sequence[Pair],
        instruction: str | Sequence[str | None] | None = None,
        *,
        batch_size: int = 16,
        max_batch_tokens: int = 16_384,
        on_bad: OnBad | None = None,
    ) -> np.ndarray:
        """The logit of Yes less that of No at the first position of the answer: float32 [N].

        Args:
            instruction: of the queries: one for all, or one for each pair; None for none.
            batch_size: most pairs of one pass.
            max_batch_tokens: upper limit of pairs x longest prompt in one pass.
            on_bad: called with the place of a pair that cannot be shown, which gets NaN; None: it raises.

        Raises:
            ValueError: a picture cannot be read, or a pair has more than the model takes; naming its place.
            TypeError: a pair is not of two contents.
        """
        for place, pair in enumerate(pairs):
            if not all(isinstance(content, Content) for content in pair):
                raise TypeError(f"pair {place}: two Content(text=..., image=...) expected, not {pair!r}"[:200])
        instructions = per_content(instruction, len(pairs))
        prompts = [
            self._prompts.pair(query, candidate, own)
            for (query, candidate), own in zip(pairs, instructions, strict=True)
        ]
        shown = [
            Content(prompt, images=(*query.images, *candidate.images))
            for prompt, (query, candidate) in zip(prompts, pairs, strict=True)
        ]
        log_odds = np.full(len(pairs), np.nan, np.float32)
        groups = _same_query(pairs, instructions)
        limits = {"max_batch_rows": batch_size, "max_batch_tokens": max_batch_tokens}
        for batch in ahead(self._batches(groups, shown, prompts, limits, on_bad)):
            log_odds[batch.rows] = self.log_odds_of(batch)
        return log_odds

    def _batches(
        self,
        groups: Sequence[Sequence[int]],
        shown: Sequence[Content],
        prompts: Sequence[str],
        limits: Mapping[str, int],
        on_bad: OnBad | None,
    ) -> Iterator[PreparedBatch]:
        """The passes of each group: rows of different groups share none."""
        for places in groups:

            def report(row: int, error: BadImage, places: Sequence[int] = places) -> None:
                if on_bad is None:
                    raise ValueError(f"pair {places[row]}: {error}")
                on_bad(places[row], error)

            for batch in prepare_batches(
                self.backbone,
                [shown[place] for place in places],
                [prompts[place] for place in places],
                max_tokens=0,
                share_pictures=True,
                on_bad=report,
                token_ids=self._prompts.token_ids,
                **limits,  # type: ignore[arg-type]
            ):
                yield replace(batch, rows=[places[row] for row in batch.rows])

    def log_odds_of(self, batch: PreparedBatch) -> np.ndarray:
        """`log_odds` of one prepared batch: float32 [B]."""
        with torch.inference_mode():
            logit_B2 = self.answering.logits(states(self.module, batch), self._yes_no)
            log_odds: np.ndarray = (logit_B2[:, 0] - logit_B2[:, 1]).cpu().numpy()
        return log_odds


def _same_query(pairs: Sequence[Pair], instructions: Sequence[str | None]) -> list[list[int]]:
    """Places of the pairs, those of one query with several candidates together, and all others together."""
    groups: dict[tuple[int, str | None], list[int]] = {}
    for place, ((query, _), own) in enumerate(zip(pairs, instructions, strict=True)):
        groups.setdefault((id(query), own), []).append(place)
    several = [places for places in groups.values() if len(places) > 1]
    others = [places[0] for places in groups.values() if len(places) == 1]
    return ([others] if others else []) + several


def yes_share(log_odds: np.ndarray) -> np.ndarray:
    """The share of Yes; inside (0, 1) in float32 too, and NaN of NaN.

    >>> yes_share(np.array([0.0, 1000.0], np.float32)) < 1
    array([ True,  True])
    """
    smallest = np.finfo(np.float32).eps
    shares = 0.5 * (1.0 + np.tanh(0.5 * log_odds.astype(np.float64)))  # the logistic function, without overflow
    clipped: np.ndarray = np.clip(shares, smallest, 1 - smallest).astype(np.float32)
    return clipped
