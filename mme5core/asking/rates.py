"""The rate limiter: grants permits to all workers within the budget, the rates and a ceiling that a 429 lowers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# A 429 lowers the ceiling to three quarters, at most once per cooldown; so many answers raise it by one.
DECREASE, COOLDOWN_S, ANSWERS_PER_INCREASE = 0.75, 1.0, 25
# Between two reports a worker may reuse each permit so often, if the budget is far above the calls in flight.
REUSES_PER_CALL, FAR_FROM_SPENT = 4, 20
BURST_S = 1.0  # a rate allows this many seconds of it at once
SILENT_S = 30.0  # a worker that sends no report for so long is dead, and its calls no longer count
FIRST_GUESS_TOKENS = 3000  # of one call, until there are answers


@dataclass(frozen=True, slots=True)
class Usage:
    """What requests cost; `calls` counts failed ones too.

    >>> Usage(calls=2, prompt_tokens=100) - Usage(calls=1) + Usage(num_answered=1)
    Usage(calls=1, num_answered=1, prompt_tokens=100, completion_tokens=0, usd=0.0)
    """

    calls: int = 0
    num_answered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.num_answered + other.num_answered,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.usd + other.usd,
        )

    def __sub__(self, other: Usage) -> Usage:
        return self + Usage(
            -other.calls, -other.num_answered, -other.prompt_tokens, -other.completion_tokens, -other.usd
        )


@dataclass(slots=True)
class Report:
    """What a worker has done since it began: totals, so that a report that comes twice or not at all does no harm.

    `retry_after_s` is the longest pause that the server has asked for since the last report. `notes` are for people.
    """

    num_in_flight: int = 0
    used: Usage = Usage()
    num_throttled: int = 0
    retry_after_s: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """How many requests a worker may send now. If none: when to ask again, or that the budget is spent.

    Until its next report it may send `reuses` more without asking, each with the permit of one that has ended.
    """

    count: int
    wait_s: float = 0.0
    is_spent: bool = False
    reuses: int = 0


@dataclass(slots=True)
class _Bucket:
    """A token bucket: a rate per minute, and what of it is available now."""

    per_minute: float
    now: Callable[[], float]
    level: float = field(init=False)
    filled: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.filled = self._capacity, self.now()

    @property
    def _capacity(self) -> float:
        return max(1.0, self.per_minute / 60 * BURST_S)

    def has(self, amount: float) -> bool:
        """Whether the amount may be taken; one larger than the whole bucket may be when the bucket is full."""
        now = self.now()
        self.level = min(self._capacity, self.level + (now - self.filled) * self.per_minute / 60)
        self.filled = now
        return self.level >= min(amount, self._capacity)

    def seconds_until(self, amount: float) -> float:
        return max(0.0, (min(amount, self._capacity) - self.level) * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        self.level -= amount


class RateLimiter:
    """Grants permits to workers, so that all together keep to the budget and the rates.

    The budget may be exceeded by the calls in flight when it was reached, and by no more. A call counts when it is
    granted, its money when it has ended; calls in flight are expected to cost the mean of those before them.

    Args:
        max_in_flight: the first and highest ceiling.
        used: what each worker has used before, workers of earlier runs included.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        budget_calls: int | None = None,
        budget_usd: float | None = None,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        used: Mapping[str, Usage] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget_calls, self._budget_usd = budget_calls, budget_usd
        self._now = now
        self._max_in_flight = float(max_in_flight)
        self.ceiling = float(max_in_flight)
        self._used_by = dict(used or {})
        self.used = sum(self._used_by.values(), Usage())
        self._requests = None if requests_per_minute is None else _Bucket(requests_per_minute, now)
        self._tokens = None if tokens_per_minute is None else _Bucket(tokens_per_minute, now)
        self._in_flight: dict[str, int] = {}
        self._reuses: dict[str, int] = {}
        self._throttled: dict[str, int] = {}
        self._heard: dict[str, float] = {}
        self._decreased, self._paused_until, self._is_halted = -COOLDOWN_S, 0.0, False

    @property
    def in_flight(self) -> int:
        return sum(self._in_flight.values())

    @property
    def paused_s(self) -> float:
        """For how long nothing is granted yet, because a server has asked to wait."""
        return max(0.0, self._paused_until - self._now())

    def exchange(self, worker: str, report: Report, wanted: int) -> Grant:
        """Take a worker's report and grant it at most `wanted` permits; those of its last grant end with this."""
        self._take(worker, report)
        if self._is_halted:
            return Grant(0, is_spent=True)
        now = self._now()
        if now < self._paused_until:
            return Grant(0, self._paused_until - now)
        allowed = self._allowed_by_budget()
        if wanted and allowed is not None and allowed <= 0:
            # Calls in flight may cost less than the mean, or be given back; then some budget is left.
            is_spent = self._is_money_spent() or not self.in_flight
            return Grant(0, 0.0 if is_spent else 0.05, is_spent)
        room = int(self.ceiling) - self.in_flight
        count, wait_s = self._take_from_rates(max(0, min(wanted, room, wanted if allowed is None else allowed)))
        self.used += Usage(calls=count)
        self._used_by[worker] += Usage(calls=count)
        self._in_flight[worker] += count
        self._reuses[worker] = self._reuses_for(worker, None if allowed is None else allowed - count)
        return Grant(count, wait_s or 0.02, reuses=self._reuses[worker])

    def halt(self) -> None:
        """Grant nothing any more; calls in flight may end."""
        self._is_halted = True

    def _reuses_for(self, worker: str, allowed: int | None) -> int:
        """Permits that a worker may reuse without asking: none where every call counts."""
        is_tight = allowed is not None and allowed < FAR_FROM_SPENT * self.in_flight
        if self._requests is not None or self._tokens is not None or is_tight or self.in_flight > self.ceiling:
            return 0
        return REUSES_PER_CALL * self._in_flight[worker]

    def _take(self, worker: str, report: Report) -> None:
        now = self._now()
        self._heard[worker] = now
        for other in [other for other, heard in self._heard.items() if now - heard > SILENT_S]:
            del self._heard[other]
            self._in_flight.pop(other, None)
            self._reuses.pop(other, None)
        self._in_flight[worker], self._reuses[worker] = report.num_in_flight, 0
        gained = report.used - self._used_by.get(worker, Usage())
        if self._tokens is not None and gained.num_answered:
            # They were taken from the bucket at the mean of the calls before.
            self._tokens.take(gained.tokens - gained.num_answered * self._mean_tokens())
        self.used += gained
        self._used_by[worker] = report.used
        is_throttled = report.num_throttled > self._throttled.get(worker, 0)
        self._throttled[worker] = report.num_throttled
        if is_throttled:
            if now - self._decreased >= COOLDOWN_S:
                self.ceiling = max(1.0, self.ceiling * DECREASE)
                self._decreased = now
            self._paused_until = max(self._paused_until, now + report.retry_after_s)
        else:
            self.ceiling = min(self._max_in_flight, self.ceiling + max(0, gained.num_answered) / ANSWERS_PER_INCREASE)

    def _mean_tokens(self) -> float:
        if not self.used.num_answered or not self.used.prompt_tokens:
            return FIRST_GUESS_TOKENS
        return self.used.tokens / self.used.num_answered

    def _is_money_spent(self) -> bool:
        return self._budget_usd is not None and self.used.usd >= self._budget_usd

    def _allowed_by_budget(self) -> int | None:
        allowed, reuses = [], sum(self._reuses.values())
        if self._budget_calls is not None:
            allowed.append(self._budget_calls - self.used.calls - reuses)
        if self._budget_usd is not None:
            mean_usd = self.used.usd / self.used.num_answered if self.used.num_answered else 0.0
            left_usd = self._budget_usd - self.used.usd - (self.in_flight + reuses) * mean_usd
            if left_usd <= 0:
                allowed.append(0)
            elif mean_usd:
                allowed.append(max(1, int(left_usd / mean_usd)))
            else:
                # The cost of a call is not known yet: one call shows it.
                allowed.append(max(0, 1 - self.in_flight))
        return min(allowed, default=None)

    def _take_from_rates(self, count: int) -> tuple[int, float]:
        """Take as many of `count` as the rates allow; returns how many, and the seconds until the next one."""
        mean = self._mean_tokens()
        for taken in range(count):
            for bucket, amount in ((self._requests, 1.0), (self._tokens, mean)):
                if bucket is not None and not bucket.has(amount):
                    return taken, bucket.seconds_until(amount)
            for bucket, amount in ((self._requests, 1.0), (self._tokens, mean)):
                if bucket is not None:
                    bucket.take(amount)
        return count, 0.0
