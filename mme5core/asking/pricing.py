"""What a call costs: tokens of a prompt and its pictures before it is sent, and prices by model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BATCH_FACTOR = 0.5  # OpenAI's Batch API
# Of a text in the languages of the world; English has four and a half, many others two.
CHARACTERS_PER_TOKEN = 3.0


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """USD."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


# As OpenAI listed them in 2025; prices change, and a recipe's own (`prices.*`) come first.
PRICES: dict[str, Price] = {
    "gpt-4o": Price(2.50, 10.00),
    "gpt-4o-2024-08-06": Price(2.50, 10.00),
    "gpt-4o-2024-11-20": Price(2.50, 10.00),
    "gpt-4o-mini": Price(0.15, 0.60),
    "gpt-4o-mini-2024-07-18": Price(0.15, 0.60),
    "gpt-4.1": Price(2.00, 8.00),
    "gpt-4.1-mini": Price(0.40, 1.60),
    "gpt-4.1-nano": Price(0.10, 0.40),
}


def price_of(model: str, prompt: float | None, completion: float | None, *, batch: bool = False) -> Price | None:
    """The price to reckon with: the given one where both are given, else the table's; None where nobody knows.

    >>> price_of("gpt-4o-mini", None, None, batch=True)
    Price(prompt=0.075, completion=0.3)
    >>> price_of("llama3.2-vision", None, None)
    """
    if prompt is not None and completion is not None:
        return Price(prompt, completion)
    listed = PRICES.get(model)
    if listed is None:
        return None
    factor = BATCH_FACTOR if batch else 1.0
    return Price(listed.prompt * factor, listed.completion * factor)


def picture_tokens(width: int, height: int, model: str = "") -> int:
    """Tokens of one picture, by the rule that OpenAI publishes for gpt-4o and gpt-4.1 at high detail.

    Scaled down to fit 2,048 x 2,048, then to a shortest side of 768, it costs a base and as much again for each tile of
    512 x 512 (85 and 170, but 2,833 and 5,667 of gpt-4o-mini's cheaper tokens).

    >>> picture_tokens(512, 512), picture_tokens(1024, 1024), picture_tokens(4096, 2048)
    (255, 765, 1105)
    """
    base, per_tile = (2833, 5667) if model.startswith("gpt-4o-mini") else (85, 170)
    scale = min(1.0, 2048 / max(width, height))
    width_, height_ = width * scale, height * scale
    scale = min(1.0, 768 / min(width_, height_))
    tiles = math.ceil(width_ * scale / 512) * math.ceil(height_ * scale / 512)
    return base + per_tile * tiles


def prompt_tokens(text: str, sizes: Sequence[tuple[int, int]], model: str = "") -> int:
    """Tokens to expect of a prompt with pictures; an estimate until a server has counted some.

    Args:
        sizes: width and height of each picture.
    """
    return text_tokens(text) + sum(picture_tokens(*size, model) for size in sizes)


def text_tokens(text: str) -> int:
    """Tokens of a text, as a rule of thumb."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
