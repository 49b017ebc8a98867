"""Tests of what calls cost."""

from __future__ import annotations

import pytest

from mme5core.asking.pricing import Price, picture_tokens, price_of, prompt_tokens


def test_the_recipes_prices_come_before_the_tables() -> None:
    assert price_of("gpt-4o", 1.0, 2.0) == Price(1.0, 2.0)
    assert price_of("gpt-4o", None, None) == Price(2.5, 10.0)
    assert price_of("gpt-4o", 1.0, None) == Price(2.5, 10.0)  # half a price is none
    assert price_of("gpt-4o", None, None, batch=True) == Price(1.25, 5.0)
    assert price_of("my-llama", None, None) is None
    assert Price(2.5, 10.0).of(1_000_000, 100_000) == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("size", "tokens"),
    # As OpenAI's examples: 1,024 x 1,024 is scaled to 768 and costs four tiles, 2,048 x 4,096 six.
    [((1024, 1024), 765), ((2048, 4096), 1105), ((512, 512), 255), ((20, 20), 255), ((4000, 100), 765)],
)
def test_tokens_of_a_picture(size: tuple[int, int], tokens: int) -> None:
    assert picture_tokens(*size) == tokens


def test_a_prompt_is_its_text_and_its_pictures() -> None:
    assert prompt_tokens("x" * 3000, [(512, 512), (1024, 1024)]) == 1000 + 255 + 765
