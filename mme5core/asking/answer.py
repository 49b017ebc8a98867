"""The answer in the body of a chat completion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mme5core.asking.pricing import Price, text_tokens
from mme5core.asking.request import SCHEMA

NOT_OF_THE_PROTOCOL = (LookupError, TypeError, ValueError, AttributeError)
"""What `answer_of` raises for a body that is no chat completion."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and what it took: `calls` counts every request, failed ones included."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    calls: int = 1
    form: str = SCHEMA

    def with_tokens(self, estimated_prompt_tokens: Callable[[], int]) -> Answer:
        """The answer, with estimates where the server counts no tokens: a budget in money would else never be spent."""
        if self.prompt_tokens or self.completion_tokens:
            return self
        return replace(self, prompt_tokens=estimated_prompt_tokens(), completion_tokens=text_tokens(self.text))

    def record(self, prompt_sha256: str, seed: int, price: Price | None) -> dict[str, Any]:
        """The answer as the log keeps it."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "model": self.model,
            "mode": self.form,
            "prompt_sha256": prompt_sha256,
            "seed": seed,
            "usd": None if price is None else price.of(self.prompt_tokens, self.completion_tokens),
        }


def answer_of(completion: dict[str, Any], model: str, *, calls: int = 1, form: str = SCHEMA) -> Answer:
    """The answer in the body of a chat completion. A refusal of the server's own counts as filtered; its text is kept.

    Raises:
        NOT_OF_THE_PROTOCOL: it is none.
    """
    choice, usage = completion["choices"][0], completion.get("usage") or {}
    message = choice["message"]
    refusal = message.get("refusal")
    content = refusal or message.get("content") or ""
    if not isinstance(content, str):  # parts, of models that think aloud
        content = "".join(part["text"] for part in content if part["type"] == "text")
    return Answer(
        content.encode(errors="backslashreplace").decode(),  # half a character is no text
        "content_filter" if refusal else choice.get("finish_reason"),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        str(completion.get("model") or model),
        calls,
        form,
    )
