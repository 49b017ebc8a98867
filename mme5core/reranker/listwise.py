"""A listwise reranker: all candidates of a query in one prompt, each scored by the probability of its number.

Shapes: K candidates, N positions where the numbers' tokens differ, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mme5core.backbones.protocol import PictureSize
from mme5core.encoder.prepare import prepare_batches
from mme5core.encoder.shared_prefix import states
from mme5core.images import BadImage
from mme5core.judge.answering import AnsweringModel
from mme5core.judge.prompt import label_of
from mme5core.reranker.answer_trie import AnswerTrie, TokenIds
from mme5core.types import Content


class ListAnswers:
    """The tokens of the numbers of lists, and the trie of each length.

    Args:
        answering: whose tokenizer it is.
    """

    def __init__(self, answering: AnsweringModel) -> None:
        self._prompts = answering.prompts
        self._tokens: list[TokenIds] = []
        self._tries: dict[int, AnswerTrie] = {}

    def tokens(self, number: int) -> TokenIds:
        """Of the answer that names a candidate; numbers count from 1."""
        if number > len(self._tokens):
            labels = [label_of(n) for n in range(1, max(number, 16) + 1)]
            self._tokens = self._prompts.answer_token_ids(labels)
        return self._tokens[number - 1]

    def trie(self, num_candidates: int) -> AnswerTrie:
        """
        Raises:
            ValueError: the tokenizer does not tell the numbers apart.
        """
        if num_candidates not in self._tries:
            answers = [self.tokens(number) for number in range(1, num_candidates + 1)]
            self._tries[num_candidates] = AnswerTrie.of(answers)
        return self._tries[num_candidates]


class ListwiseScores:
    def __init__(self, answering: AnsweringModel) -> None:
        self._answering, self._answers = answering, ListAnswers(answering)

    def scores(
        self,
        query: Content,
        candidates: Sequence[Content],
        instruction: str | None = None,
        *,
        max_batch_tokens: int = 16_384,
    ) -> np.ndarray:
        """The logarithm of each candidate's probability among the numbers of the list: float32 [K].

        The positions where the numbers' tokens differ are rows of one pass that share their prompt: one for up to nine
        candidates whatever the tokenizer, two for up to nineteen where it spells numbers digit by digit.

        Args:
            max_batch_tokens: upper limit of rows x longest prompt in one forward pass.

        Raises:
            BadImage: a picture cannot be read, or the list has more pictures than the model takes.
            ValueError: the tokenizer does not tell the numbers apart.
        """
        if len(candidates) < 2:
            return np.zeros(len(candidates), np.float32)
        trie = self._answers.trie(len(candidates))
        prompt = self._answering.prompts.several(query, candidates, instruction)
        pictures = (*query.images, *(image for candidate in candidates for image in candidate.images))
        before = list(trie.branches)
        log_share: dict[tuple[TokenIds, int], float] = {}

        def token_ids(prompts: Sequence[str], sizes: Sequence[Sequence[PictureSize]]) -> list[list[int]]:
            (row,) = self._answering.prompts.token_ids(prompts[:1], sizes[:1])
            return [[*row, *path] for path in before]

        def refuse(_: int, error: BadImage) -> None:
            raise error

        for batch in prepare_batches(
            self._answering.backbone,
            [Content(prompt, images=pictures)] * len(before),
            [prompt] * len(before),
            max_tokens=0,
            max_batch_rows=len(before),
            max_batch_tokens=max_batch_tokens,
            share_pictures=True,
            on_bad=refuse,
            token_ids=token_ids,
        ):
            with torch.inference_mode():
                state_BD = states(self._answering.module, batch)
                for place, row in enumerate(batch.rows):
                    tokens = trie.branches[before[row]]
                    shares = self._answering.logits(state_BD[place : place + 1], tokens)[0].log_softmax(dim=0)
                    log_share |= {
                        (before[row], token): share for token, share in zip(tokens, shares.tolist(), strict=True)
                    }
        numbers = range(1, len(candidates) + 1)
        return np.array(
            [sum(log_share[choice] for choice in trie.choices(self._answers.tokens(n))) for n in numbers], np.float32
        )
