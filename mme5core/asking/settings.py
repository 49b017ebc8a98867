"""The settings of a served MLLM: where it is, how it is asked, what may be spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mme5core.asking.pricing import Price, price_of
from mme5core.asking.request import Sampling
from mme5core.errors import InputError
from mme5core.settings import Section, key

OURS = {"model", "messages", "n", "stream", "response_format"}
OURS |= {"seed", "temperature", "max_tokens", "max_completion_tokens"}
"""Fields of a request that `extra` may not set."""


class Endpoint(Section):
    """A server and how fast it is asked."""

    base_url: str = key("", "OpenAI-compatible endpoint, as http://host:8000/v1; key in OPENAI_API_KEY", rows=False)
    model: str = key("", "model name at the endpoint")
    concurrency: int = key(32, "calls (or batches) in flight per worker", rows=False, ge=1)
    calls_per_batch: int | None = key(
        None,
        "ask through the Batch API, at most so many calls a batch: half the price at OpenAI, answers within a day; "
        "null: call by call",
        rows=False,
        ge=1,
        le=50_000,
        formerly="batch_size",
    )
    batch_poll_s: float = key(30.0, "how often to ask for a batch, seconds", rows=False, gt=0)
    timeout_s: float = key(120.0, "longest wait for one answer, seconds", rows=False, gt=0)
    max_attempts: int = key(5, "tries of one call before it is left for the next run", rows=False, ge=1)
    requests_per_minute: float | None = key(None, "over all workers; null: no limit but 429", rows=False, gt=0)
    tokens_per_minute: float | None = key(
        None, "of prompts and answers, over all workers; null: no limit but 429", rows=False, gt=0
    )
    extra: dict[str, Any] = key(
        {}, "further fields of each request, as {chat_template_kwargs: {enable_thinking: false}}", added_later=True
    )
    omit: list[Literal["seed", "temperature", "max_tokens"]] = key(
        [], "fields of a request that the server rejects, and that are left out", rows=False
    )
    max_picture_side: int | None = key(
        None,
        "pictures with a longer side are scaled down to it before they are sent, pixels; null: sent as they are",
        added_later=True,
        ge=1,
    )
    cache: str | None = key(
        None,
        "folder of answers that runs share: what was asked before, to the letter, is not asked again",
        rows=False,
        path="local",
    )

    def price(self, prices: PriceSettings) -> Price | None:
        """What the model costs; through the Batch API, where the user gives no price, half of the list price."""
        return price_of(self.model, prices.prompt, prices.completion, batch=self.calls_per_batch is not None)

    def check(self, section: str, prices: PriceSettings, budget: BudgetSettings) -> None:
        """
        Args:
            section: the name of these settings in the recipe, for messages.

        Raises:
            InputError: no endpoint or model, a password in the address, a field of our own in `extra`, or a budget in
                money without prices.
        """
        if not self.base_url or not self.model:
            missing = "base_url" if not self.base_url else "model"
            raise InputError(
                f"'{section}.{missing}' is required: an OpenAI-compatible endpoint and a model's name there"
            )
        if not self.base_url.startswith(("http://", "https://")):
            raise InputError(f"'{section}.base_url' must begin with http:// or https://, got {self.base_url!r}")
        if self.cache and Path(self.cache).exists() and not Path(self.cache).is_dir():
            raise InputError(f"{section}.cache {self.cache!r} is not a folder")
        if "@" in self.base_url.partition("://")[2].partition("/")[0]:
            raise InputError(f"'{section}.base_url' holds a name or a password: put a key into OPENAI_API_KEY instead")
        if taken := sorted(OURS & self.extra.keys()):
            raise InputError(
                f"'{section}.extra' cannot set {taken[0]!r}: the job sets it, and {section}.form, {section}.omit, "
                f"{section}.temperature and {section}.max_answer_tokens change what can be changed"
            )
        if budget.usd is not None and self.price(prices) is None:
            raise InputError(
                f"'budget.usd' needs 'prices.prompt' and 'prices.completion' (USD per million tokens): the price of "
                f"{self.model!r} is not known"
            )


class ServerSettings(Endpoint):
    """A server that writes answers."""

    temperature: float = key(1.0, "sampling temperature", ge=0)
    max_answer_tokens: int = key(2048, "longest answer, tokens", ge=1, formerly="max_tokens")
    form: Literal["json_schema", "json_object", "plain"] | None = key(
        None, "form in which answers are asked for; null: found out, the strictest that works", rows=False
    )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.max_answer_tokens, self.extra, tuple(self.omit))


class PriceSettings(Section):
    prompt: float | None = key(None, "USD per million prompt tokens", rows=False, ge=0)
    completion: float | None = key(None, "USD per million completion tokens", rows=False, ge=0)


class BudgetSettings(Section):
    calls: int | None = key(None, "stop (code 3) after this many calls, over all runs of the folder", rows=False, ge=0)
    usd: float | None = key(None, "stop (code 3) after this much money, over all runs; needs prices", rows=False, ge=0)
