"""Training of a reranker: what the model must answer about each sample, and the loss on the answers' tokens alone.

Shapes: N prompts of a step, R of some samples, D width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mme5core.backbones.protocol import PictureSize
from mme5core.encoder.prepare import sizes_of
from mme5core.images import BadImage
from mme5core.judge.answering import AnsweringModel
from mme5core.judge.prompt import NO, YES
from mme5core.reranker.answer_trie import TokenIds
from mme5core.reranker.listwise import ListAnswers
from mme5core.training.step_task import StepRows
from mme5core.types import Content, Sample

Among = Literal["vocabulary", "answers"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One prompt, the tokens of the answer that it already has, the token that must follow, and its weight.

    Args:
        allowed: the tokens that may follow, of all answers.
    """

    content: Content
    before: TokenIds
    target: int
    allowed: TokenIds
    weight: float


class AnswerTask:
    """The step task of a reranker (UniME-V2, arXiv 2510.13515, section 3.5).

    Pairs: Yes to the positive and No to the hardest negative. Lists: the number of the positive among itself and the
    hardest negatives, shuffled. The loss is the cross-entropy at the tokens that tell the answers apart; it does not
    touch the prompt or what all answers share.

    The positive of the n-th sample of the run stands at place n modulo the length of its list: every place is right
    equally often, whatever a model would rather answer.

    Args:
        list_negatives: hard negatives of a list at most.
        pair_weight, list_weight: of the two losses.
        among: what the probability of a token is shared with: the whole "vocabulary", as where a model writes its
            answer, or the tokens of the "answers", as where it is scored.
    """

    def __init__(
        self,
        answering: AnsweringModel,
        *,
        list_negatives: int,
        pair_weight: float,
        list_weight: float,
        among: Among,
        batch_size: int,
        seed: int,
    ) -> None:
        self._answering, self._answers = answering, ListAnswers(answering)
        self._list_negatives = list_negatives if list_weight else 0
        self._pair_weight, self._list_weight = pair_weight, list_weight
        self._batch_size, self._seed, self._among = batch_size, seed, among
        (self._yes, *_), (self._no, *_) = answering.prompts.answer_token_ids((YES, NO))
        if self._yes == self._no:
            raise ValueError(f"the tokenizer begins {YES!r} and {NO!r} with one token: the model cannot answer with it")

    def rows(self, samples: Sequence[Sample], step: int) -> StepRows:
        asked = [list(self._asked(sample, step, place)) for place, sample in enumerate(samples)]
        flat = [one for of_sample in asked for one in of_sample]
        sizes = [self._sizes(one.content) for one in flat]
        prompts = [one.content.text or "" for one in flat]
        ids = self._answering.prompts.token_ids(prompts, sizes)
        token_ids = [[*row, *one.before] for row, one in zip(ids, flat, strict=True)]
        owners = [place for place, of_sample in enumerate(asked) for _ in of_sample]
        share = partial(self._share, owners, flat, len(samples))
        return StepRows([one.content for one in flat], token_ids, share)

    def place_of_positive(self, step: int, place: int, num_candidates: int) -> int:
        """Where the positive stands in the list of a sample, from 0.

        Args:
            place: of the sample in its batch.
        """
        return (step * self._batch_size + place) % num_candidates

    def _asked(self, sample: Sample, step: int, place: int) -> Iterator[_Asked]:
        hardest = by_score(sample)
        query, instruction, prompts = sample.query, sample.instruction, self._answering.prompts
        if self._pair_weight:
            for candidate, token in ((sample.positive, self._yes), (hardest[0], self._no)):
                prompt = prompts.pair(query, candidate, instruction)
                shown = Content(prompt, images=(*query.images, *candidate.images))
                yield _Asked(shown, (), token, (self._yes, self._no), self._pair_weight)
        if self._list_negatives:
            candidates = hardest[: self._list_negatives]
            random.Random(f"{self._seed} {step} {sample.id}").shuffle(candidates)
            right = self.place_of_positive(step, place, len(candidates) + 1)
            candidates.insert(right, sample.positive)
            prompt = prompts.several(query, candidates, instruction)
            images = (*query.images, *(image for candidate in candidates for image in candidate.images))
            trie = self._answers.trie(len(candidates))
            for before, token in trie.choices(self._answers.tokens(right + 1)):
                allowed = trie.branches[before]
                yield _Asked(Content(prompt, images=images), before, token, allowed, self._list_weight)

    def _sizes(self, content: Content) -> tuple[PictureSize, ...]:
        try:
            return sizes_of(self._answering.backbone, content)
        except BadImage as error:
            raise ValueError(f"a list of this many pictures: {error}; lower list_negatives") from None

    def _share(
        self, owners: Sequence[int], asked: Sequence[_Asked], num_rows: int, state_ND: Tensor, rows: slice
    ) -> Tensor:
        """The share of some samples of the mean loss, from the states where the tokens must follow."""
        own = [n for n, owner in enumerate(owners) if owner in range(*rows.indices(num_rows))]
        groups: dict[TokenIds | None, list[int]] = {}
        for n in own:
            groups.setdefault(asked[n].allowed if self._among == "answers" else None, []).append(n)
        share = (state_ND[:0] * 0).sum()
        for allowed, numbers in groups.items():
            logits_RA = self._answering.logits(state_ND[numbers], allowed)
            targets = [asked[n].target if allowed is None else allowed.index(asked[n].target) for n in numbers]
            weight_R = torch.tensor([asked[n].weight for n in numbers], device=state_ND.device)
            target_R = torch.tensor(targets, device=state_ND.device)
            share = share + (F.cross_entropy(logits_RA, target_R, reduction="none") * weight_R).sum()
        return share / num_rows


def by_score(sample: Sample) -> list[Content]:
    """The negatives, those with the highest scores first; without scores in their own order.

    >>> by_score(Sample("a", Content("q"), Content("p"), (Content("x"), Content("y")), scores=(0.9, 0.2, 0.4)))[0].text
    'y'
    """
    scores = sample.scores[1 : 1 + len(sample.negatives)]
    if len(scores) < len(sample.negatives):
        return list(sample.negatives)
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return [sample.negatives[place] for place in order]
