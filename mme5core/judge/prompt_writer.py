"""The prompts of one model: through its chat template, or else in our own plain form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mme5core.backbones import Backbone
from mme5core.backbones.protocol import CHARACTERS_PER_TOKEN, PictureSize
from mme5core.judge.prompt import messages_of, parts_of, parts_of_list, plain_text
from mme5core.types import Content

MAX_TEXT_TOKENS = 2048
"""Of the text of a query or a candidate; what is longer is judged by its beginning."""


class PromptWriter:
    """
    Args:
        max_text_tokens: of the text of each query and candidate.
    """

    def __init__(self, backbone: Backbone, max_text_tokens: int = MAX_TEXT_TOKENS) -> None:
        self.max_text_tokens = max_text_tokens
        self._backbone = backbone
        self._tokenizer: Any = backbone.tokenizer
        self._uses_template = self._has_usable_template()

    def pair(self, query: Content, candidate: Content, instruction: str | None) -> str:
        """The prompt about one candidate."""
        return self._written(parts_of(self._usable(query), self._usable(candidate), self._safe(instruction)))

    def several(self, query: Content, candidates: Sequence[Content], instruction: str | None) -> str:
        """The prompt about numbered candidates."""
        usable = [self._usable(candidate) for candidate in candidates]
        return self._written(parts_of_list(self._usable(query), usable, self._safe(instruction)))

    def token_ids(self, prompts: Sequence[str], sizes: Sequence[Sequence[PictureSize]]) -> list[list[int]]:
        """Of whole prompts: a template's has all special tokens, a plain one gets those of the tokenizer."""
        rows = self._tokenizer(list(prompts), add_special_tokens=not self._uses_template)["input_ids"]
        return [self._backbone.expanded(row, of_row) for row, of_row in zip(rows, sizes, strict=True)]

    def answer_token_ids(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """The tokens of each answer where it begins, after a prompt."""
        prompt = self.pair(Content("a"), Content("b"), None)
        (before,) = self.token_ids([prompt], [()])
        token_ids = []
        for answer in answers:
            (after,) = self.token_ids([prompt + answer], [()])
            # The tokenizer may end a prompt with tokens of its own.
            start = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before))
            start = min(start, len(after) - 1)
            token_ids.append(tuple(after[start : len(after) - (len(before) - start)]) or (after[start],))
        return token_ids

    def _written(self, parts: Sequence[str | None]) -> str:
        return self._of_template(parts) if self._uses_template else plain_text(parts, self._backbone.image_prefix)

    def _safe(self, instruction: str | None) -> str | None:
        return None if instruction is None else self._defused(instruction)

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
