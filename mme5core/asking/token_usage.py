"""The tokens that a server says it has used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens that are paid for.

    >>> Tokens(100, 20) + Tokens(1, 2)
    Tokens(prompt=101, completion=22)
    """

    prompt: int = 0
    completion: int = 0

    def __bool__(self) -> bool:
        return bool(self.prompt or self.completion)

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)


def tokens_of(body: Any) -> Tokens:
    """What the body of a reply says it has used, whatever else it holds; nothing where it says nothing.

    Some servers bill tokens of thinking that only the total counts. They are priced as an answer's. No count is
    negative, whatever the server says.

    >>> tokens_of({"usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 1120}})
    Tokens(prompt=100, completion=1020)
    >>> tokens_of({"usage": {"prompt_tokens": -5, "completion_tokens": "7"}}), tokens_of("a page")
    (Tokens(prompt=0, completion=7), Tokens(prompt=0, completion=0))
    """
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return Tokens()
    prompt, completion, total = (
        max(_count(usage.get(name)), _count(usage.get(other)))
        for name, other in (
            ("prompt_tokens", "input_tokens"),
            ("completion_tokens", "output_tokens"),
            ("total_tokens", "total_tokens"),
        )
    )
    return Tokens(prompt, max(completion, total - prompt))


def _count(number: Any) -> int:
    """A count as a server writes it; 0 for what is none."""
    try:
        count = float(number)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(count) if math.isfinite(count) and count > 0 else 0
