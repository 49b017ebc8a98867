"""A judge in this process: how likely a vision-language model is to answer Yes, from one pass over the prompt.

Shapes: N pairs, B rows of a pass, D width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mme5core.ahead import ahead
from mme5core.backbones import Backbone
from mme5core.backbones.protocol import CHARACTERS_PER_TOKEN, PictureSize
from mme5core.encoder.encoder import per_content
from mme5core.encoder.loading import check_finite, default_device, load_model
from mme5core.encoder.module import EmbeddingModel
from mme5core.encoder.prepare import OnBad, PreparedBatch, prepare_batches
from mme5core.encoder.shared_prefix import states
from mme5core.images import BadImage
from mme5core.judge.prompt import NO, YES, messages_of, parts_of, plain_text
from mme5core.types import Content

MAX_TEXT_TOKENS = 2048
"""Of the text of a query or a candidate; what is longer is judged by its beginning."""
Pair = tuple[Content, Content]
"""A query and a candidate."""


class Judge:
    """
    Args:
        head: the model's layer from states to logits.
    """

    def __init__(self, model: nn.Module, head: nn.Module, backbone: Backbone) -> None:
        self.module = EmbeddingModel(model, backbone)
        self.backbone = backbone
        self._head = head
        self._prompts = JudgePrompts(backbone)
        self._scale = _logit_scale(model.config)
        self._yes_no = self._prompts.answer_ids((YES, NO))
        if self._yes_no[0] == self._yes_no[1]:
            raise ValueError(
                f"the tokenizer begins {YES!r} and {NO!r} with one token, so that the model cannot judge by it"
            )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        dtype: str = "auto",
        *,
        adapter: str | os.PathLike[str] | None = None,
        attention: str | None = None,
        remote_code: bool = False,
    ) -> Judge:
        """A judge from the checkpoint of a vision-language model, an adapter folder or a hub id.

        Args:
            device, dtype, adapter, attention, remote_code: as `Encoder.load`.

        Raises:
            ValueError: as `Encoder.load`; or the model has no language-model head, or its tokenizer begins Yes and No
                with one token.
        """
        loaded = load_model(
            path,
            adapter=adapter,
            dtype=dtype,
            merge_adapter=True,
            attention=attention,
            remote_code=remote_code,
            quantize=None,
            with_head=True,
        )
        if loaded.head is None:
            raise ValueError(f"the model at {str(path)!r} has no language-model head: it cannot answer")
        judge = cls(loaded.model, loaded.head, loaded.backbone)
        where = default_device() if device == "auto" else torch.device(device)
        judge.module.to(where)
        judge._head.to(where)
        check_finite(judge.module.model, str(path))
        judge.module.eval()
        return judge

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
            self._prompts.text(query, candidate, own)
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
            logit_B2 = self.logits(states(self.module, batch))
            log_odds: np.ndarray = (logit_B2[:, 0] - logit_B2[:, 1]).cpu().numpy()
        return log_odds

    def logits(self, state_BD: Tensor) -> Tensor:
        """float32 [B, 2]: of Yes and of No."""
        head: Any = self._head
        rows = list(self._yes_no)
        logit_B2 = state_BD.float() @ head.weight[rows].float().T
        bias = getattr(head, "bias", None)
        return self._scale(logit_B2 if bias is None else logit_B2 + bias[rows].float())


def _same_query(pairs: Sequence[Pair], instructions: Sequence[str | None]) -> list[list[int]]:
    """Places of the pairs, those of one query with several candidates together, and all others together."""
    groups: dict[tuple[int, str | None], list[int]] = {}
    for place, ((query, _), own) in enumerate(zip(pairs, instructions, strict=True)):
        groups.setdefault((id(query), own), []).append(place)
    several = [places for places in groups.values() if len(places) > 1]
    others = [places[0] for places in groups.values() if len(places) == 1]
    return ([others] if others else []) + several


class JudgePrompts:
    """The prompts of a judge for one model: through its chat template, or else in our own plain form."""

    def __init__(self, backbone: Backbone) -> None:
        self.max_text_tokens = MAX_TEXT_TOKENS
        self._backbone = backbone
        self._tokenizer: Any = backbone.tokenizer
        self._uses_template = self._has_usable_template()

    def text(self, query: Content, candidate: Content, instruction: str | None) -> str:
        query, candidate = self._usable(query), self._usable(candidate)
        parts = parts_of(query, candidate, None if instruction is None else self._defused(instruction))
        return self._of_template(parts) if self._uses_template else plain_text(parts, self._backbone.image_prefix)

    def token_ids(self, prompts: Sequence[str], sizes: Sequence[Sequence[PictureSize]]) -> list[list[int]]:
        """Of whole prompts: a template's has all special tokens, a plain one gets those of the tokenizer."""
        rows = self._tokenizer(list(prompts), add_special_tokens=not self._uses_template)["input_ids"]
        return [self._backbone.expanded(row, of_row) for row, of_row in zip(rows, sizes, strict=True)]

    def answer_ids(self, words: Sequence[str]) -> tuple[int, ...]:
        """The first token of each word where the answer begins."""
        prompt = self.text(Content("a"), Content("b"), None)
        (before,) = self.token_ids([prompt], [()])
        ids = []
        for word in words:
            (after,) = self.token_ids([prompt + word], [()])
            # The tokenizer may end a prompt with a token of its own.
            same = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
            ids.append(after[min(same, len(after) - 1)])
        return tuple(ids)

    def _of_template(self, parts: Sequence[str | None]) -> str:
        text = self._tokenizer.apply_chat_template(messages_of(parts), tokenize=False, add_generation_prompt=True)
        return str(text)

    def _has_usable_template(self) -> bool:
        """Whether there is a template that takes texts and pictures in parts, and keeps both."""
        if not getattr(self._tokenizer, "chat_template", None):
            return False
        token = getattr(self._backbone, "image_token", None)
        try:
            text = self._of_template(["first part", None, "second part"])
        except Exception:  # templates are programs: they raise whatever they like
            return False
        shows_picture = token is None or text.count(token) == self._backbone.image_prefix.count(token)
        return shows_picture and "first part" in text and "second part" in text

    def _usable(self, content: Content) -> Content:
        """The content with its text cut to `max_text_tokens` and defused."""
        if not content.text:
            return content
        text = self._defused(content.text)
        if len(text) > self.max_text_tokens:
            text = text[: CHARACTERS_PER_TOKEN * self.max_text_tokens]
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            if len(encoded["input_ids"]) > self.max_text_tokens:
                text = text[: encoded["offset_mapping"][self.max_text_tokens][0]]
        return Content(text, images=content.images)

    def _defused(self, text: str) -> str:
        """The text without what the tokenizer would read as the end of a message, or another control token."""
        for token in _control_tokens(self._tokenizer):
            if token in text and token != getattr(self._backbone, "image_token", None):
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def _control_tokens(tokenizer: Any) -> set[str]:
    """Texts that the tokenizer reads as one token with a meaning of its own, named by it or only added to it."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    marked = {str(token) for token in added if token.special or str(token)[:1] in "<["}
    return {token for token in {*tokenizer.all_special_tokens, *marked} if len(token) > 1}


def yes_share(log_odds: np.ndarray) -> np.ndarray:
    """The share of Yes; inside (0, 1) in float32 too, and NaN of NaN.

    >>> yes_share(np.array([0.0, 1000.0], np.float32)) < 1
    array([ True,  True])
    """
    smallest = np.finfo(np.float32).eps
    shares = 0.5 * (1.0 + np.tanh(0.5 * log_odds.astype(np.float64)))  # the logistic function, without overflow
    clipped: np.ndarray = np.clip(shares, smallest, 1 - smallest).astype(np.float32)
    return clipped


def _logit_scale(config: Any) -> Callable[[Tensor], Tensor]:
    """What a family does with its logits after the head."""
    text = config.get_text_config()
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    cap, times, over = (getattr(text, name, None) for name in names)

    def scaled(logits: Tensor) -> Tensor:
        logits = logits * (times or 1.0) / (over or 1.0)
        return cap * torch.tanh(logits / cap) if cap else logits

    return scaled
