"""The answer in the body of a chat completion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mme5core.asking.json_in_text import holds_json
from mme5core.asking.pricing import Price, text_tokens
from mme5core.asking.request import SCHEMA
from mme5core.asking.token_usage import Tokens, tokens_of

NOT_OF_THE_PROTOCOL = (LookupError, TypeError, ValueError, AttributeError)
"""What `answer_of` raises for a body that is no chat completion."""

# Where servers put an answer that is not in `content`: those that parse what a model thinks may take all for thinking.
_OTHER_FIELDS = ("parsed", "reasoning_content", "reasoning", "thinking")
MOST_LOGPROB = 1e-3  # rounding may lift a probability above 1
_OF_THINKING = ("thinking", "reasoning", "redacted_thinking")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and what it took: calls and tokens of every request for it, failed ones included.

    Args:
        top_logprobs: tokens and the logarithms of their probabilities at the first position of the answer, where they
            were asked for and given.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    calls: int = 1
    form: str = SCHEMA
    top_logprobs: tuple[tuple[str, float], ...] = ()

    def with_tokens(self, estimated_prompt_tokens: Callable[[], int]) -> Answer:
        """The answer, with estimates where the server counts no tokens: a budget in money would else never be spent."""
        if self.prompt_tokens or self.completion_tokens:
            return self
        return replace(self, prompt_tokens=estimated_prompt_tokens(), completion_tokens=text_tokens(self.text))

    def with_bill(self, calls: int, tokens: Tokens) -> Answer:
        """The answer, with what all requests for it took."""
        return replace(self, calls=calls, prompt_tokens=tokens.prompt, completion_tokens=tokens.completion)

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.prompt_tokens, self.completion_tokens)

    def record(self, prompt_sha256: str, seed: int, price: Price | None) -> dict[str, Any]:
        """The answer as the log keeps it."""
        line = {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "model": self.model,
            "mode": self.form,
            "prompt_sha256": prompt_sha256,
            "seed": seed,
            "usd": None if price is None else price.of(self.prompt_tokens, self.completion_tokens),
        }
        return line | ({"top_logprobs": self.top_logprobs} if self.top_logprobs else {})


def is_completion(body: Any) -> bool:
    """Whether a body may be paid for: a chat completion, or what says that tokens were used."""
    return isinstance(body, dict) and (bool(body.get("choices")) or bool(tokens_of(body)))


def error_in(body: Any) -> Any:
    """The error that a body with status 200 holds instead of an answer; None where it holds none."""
    if not isinstance(body, dict):
        return None
    if body.get("error") and not body.get("choices"):
        return body
    return None


def answer_of(completion: dict[str, Any], model: str, *, calls: int = 1, form: str = SCHEMA) -> Answer:
    """The answer in the body of a chat completion. A refusal of the server's own counts as filtered; its text is kept.

    Raises:
        NOT_OF_THE_PROTOCOL: it is none.
    """
    choice, tokens = completion["choices"][0], tokens_of(completion)
    message = choice["message"]
    refusal = message.get("refusal")
    content = str(refusal) if refusal else _text(message)
    finish_reason = choice.get("finish_reason")
    return Answer(
        content.encode(errors="backslashreplace").decode(),  # half a character is no text
        "content_filter" if refusal else None if finish_reason is None else str(finish_reason),
        tokens.prompt,
        tokens.completion,
        str(completion.get("model") or model),
        calls,
        form,
        _top_logprobs(choice),
    )


def _top_logprobs(choice: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Of the first position; empty where the server gives none, or none that are numbers of at most 0."""
    try:
        entries = [(str(e["token"]), float(e["logprob"])) for e in choice["logprobs"]["content"][0]["top_logprobs"]]
    except NOT_OF_THE_PROTOCOL:
        return ()
    return tuple(entry for entry in entries if entry[1] <= MOST_LOGPROB)


def _text(message: dict[str, Any]) -> str:
    """The answer's text, in whatever field a server has put it."""
    content = _joined(message.get("content"))
    called = [arguments for arguments in _arguments(message) if holds_json(arguments)]
    if called and not holds_json(content):
        return called[0]
    if content.strip():
        return content
    others = [_joined(message.get(name)) for name in _OTHER_FIELDS]
    return next((text for text in others if holds_json(text)), content)


def _joined(content: Any) -> str:
    """Text, or the texts of its parts (of models that think aloud, without what they think)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return json.dumps(content, ensure_ascii=False)
    return "".join(
        part if isinstance(part, str) else str(part.get("text") or "")
        for part in content
        if isinstance(part, str) or part.get("type") not in _OF_THINKING
    )


def _arguments(message: dict[str, Any]) -> Iterator[str]:
    """Of the functions that the model calls instead of answering."""
    calls = message.get("tool_calls")
    for call in [*(calls if isinstance(calls, list) else []), {"function": message.get("function_call")}]:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield _joined(function.get("arguments"))
