"""Tests of who may send a request: budgets, rates and the ceiling, with a clock of their own."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mme5core.asking.rates import SILENT_S, Grant, RateLimiter, Report, Usage


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class Worker:
    """Reports of a worker, which say all that it has done so far."""

    def __init__(self, limiter: RateLimiter, name: str = "a") -> None:
        self.limiter, self.name, self.report = limiter, name, Report()
        self.num_reuses = self.num_left = 0

    def ends(self, num: int, *, tokens: int = 0, num_throttled: int = 0, retry_after_s: float = 0.0) -> None:
        self.report.num_in_flight -= num
        self.num_left += num
        self.report.used += Usage(0, num if tokens else 0, num * tokens, 0, num * tokens / 1e6)
        self.report.num_throttled += num_throttled
        self.report.retry_after_s = retry_after_s

    def wants(self, num: int) -> Grant:
        grant = self.limiter.exchange(self.name, replace(self.report), num)
        self.report.num_in_flight += grant.count
        self.report.used += Usage(calls=grant.count)
        self.report.retry_after_s = 0.0
        self.num_reuses, self.num_left = grant.reuses, 0
        return grant

    def reuses(self) -> bool:
        """Whether it may start another call without asking, in the place of one that has ended."""
        if not self.num_reuses or not self.num_left:
            return False
        self.num_reuses, self.num_left = self.num_reuses - 1, self.num_left - 1
        self.report.num_in_flight += 1
        self.report.used += Usage(calls=1)
        return True


def test_never_more_in_flight_than_the_ceiling_over_all_workers() -> None:
    limiter = RateLimiter(max_in_flight=10)
    a, b = Worker(limiter, "a"), Worker(limiter, "b")
    assert (a.wants(6).count, b.wants(6).count, a.wants(6).count) == (6, 4, 0)
    a.ends(3)
    assert a.wants(6).count == 3


def test_a_budget_of_calls_is_kept_to_the_call() -> None:
    limiter = RateLimiter(max_in_flight=100, budget_calls=10, used={"before": Usage(calls=4)})
    a, b = Worker(limiter, "a"), Worker(limiter, "b")
    assert a.wants(5).count == 5
    assert b.wants(5).count == 1
    assert b.wants(1).count == 0
    a.ends(5)
    b.ends(1)
    a.wants(0)
    assert b.wants(1).is_spent and limiter.used.calls == 10


def test_a_report_that_comes_twice_changes_nothing() -> None:
    limiter = RateLimiter(max_in_flight=10)
    worker = Worker(limiter)
    worker.wants(6)
    worker.ends(4, tokens=100, num_throttled=1)
    for _ in range(3):
        limiter.exchange("a", replace(worker.report), 0)
        assert (limiter.in_flight, limiter.used) == (2, Usage(6, 4, 400, 0, 0.0004))
        assert limiter.ceiling == 7.5  # one blow


def test_a_grant_that_was_lost_is_given_again_and_counted_once() -> None:
    limiter = RateLimiter(max_in_flight=10, budget_calls=10)
    assert limiter.exchange("a", Report(), 8).count == 8  # the worker never heard of it
    assert limiter.exchange("a", Report(), 8).count == 8
    assert (limiter.in_flight, limiter.used.calls) == (8, 8)


def test_a_budget_of_nothing_is_spent_at_once() -> None:
    for budget in ({"budget_calls": 0}, {"budget_usd": 0.0}):
        grant = Worker(RateLimiter(max_in_flight=5, **budget)).wants(3)  # type: ignore[arg-type]
        assert grant.count == 0 and grant.is_spent


@pytest.mark.parametrize(("num_workers", "ceiling"), [(1, 20), (4, 20), (1, 4), (4, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_a_budget_of_money_is_passed_by_no_more_than_what_was_in_flight(
    num_workers: int, ceiling: int, seed: int
) -> None:
    draw = random.Random(seed)
    limiter = RateLimiter(max_in_flight=ceiling, budget_usd=10.0)  # ten million tokens
    workers = [Worker(limiter, str(n)) for n in range(num_workers)]
    spent = most_in_flight = num_reuses = 0
    while True:
        worker = draw.choice(workers)
        for _ in range(draw.randint(0, worker.report.num_in_flight)):
            tokens = draw.randint(5_000, 30_000)
            spent += tokens
            worker.ends(1, tokens=tokens)
            if draw.random() < 0.8 and worker.reuses():
                num_reuses += 1
                assert spent < 10_000_000  # nothing starts once it is spent
        if draw.random() < 0.5:
            continue  # it does not report each time
        grant = worker.wants(20)
        assert not grant.count or spent < 10_000_000
        in_flight = sum(other.report.num_in_flight for other in workers)
        most_in_flight = max(most_in_flight, in_flight)
        if grant.is_spent:
            break
    assert most_in_flight <= ceiling and num_reuses > 50
    assert spent + in_flight * 5_000 > 9_900_000  # and it is used
    assert spent + in_flight * 30_000 < 10_000_000 + ceiling * 30_000


def test_calls_without_asking_are_counted_and_stop_where_they_could_pass_the_budget() -> None:
    limiter = RateLimiter(max_in_flight=10, budget_calls=1_000)
    worker = Worker(limiter)
    worker.wants(10)
    num_asked = 1
    while limiter.used.calls < 1_000:
        for _ in range(10):
            worker.ends(worker.report.num_in_flight, tokens=10)
            while worker.reuses():
                pass
        num_asked += 1
        if worker.wants(10).is_spent:
            break
    assert worker.report.used.calls == limiter.used.calls == 1_000
    assert num_asked < 60  # five calls or more for a question


def test_money_for_calls_that_may_start_without_asking_is_not_granted_to_others() -> None:
    before = Usage(calls=100, num_answered=100, prompt_tokens=100, usd=25.0)
    limiter = RateLimiter(max_in_flight=10_000, budget_usd=25.0 + 65.0, used={"before": before})  # of 260 calls more
    first = Worker(limiter, "a").wants(10)
    assert (first.count, first.reuses) == (10, 40)
    assert Worker(limiter, "b").wants(10_000).count == 260 - 10 - 40


def test_nobody_starts_without_asking_where_rates_are_set_or_the_ceiling_is_passed() -> None:
    for rates in ({"requests_per_minute": 6_000}, {"tokens_per_minute": 1e9}):
        assert Worker(RateLimiter(max_in_flight=10, **rates)).wants(5).reuses == 0  # type: ignore[arg-type]
    limiter = RateLimiter(max_in_flight=10)
    worker = Worker(limiter)
    assert worker.wants(10).reuses > 0
    worker.ends(1, num_throttled=1)
    assert worker.wants(0).reuses == 0 and limiter.in_flight == 9 > limiter.ceiling
    worker.ends(2)
    assert worker.wants(0).reuses > 0


def test_answers_that_cost_nothing_do_not_change_what_one_is_thought_to_cost() -> None:
    limiter = RateLimiter(max_in_flight=10, budget_usd=1.0, used={"before": Usage(1, 1, 0, 0, 0.1)})
    assert Worker(limiter).wants(20).count == 9  # 0.9 USD at 0.1 each


def test_nobody_is_told_that_a_budget_of_calls_is_spent_while_some_may_be_given_back() -> None:
    limiter = RateLimiter(max_in_flight=10, budget_calls=4)
    a, b = Worker(limiter, "a"), Worker(limiter, "b")
    assert a.wants(4).count == 4
    assert not b.wants(1).is_spent
    a.report.num_in_flight, a.report.used = 0, Usage(calls=3)  # one was not made after all
    a.wants(0)
    assert b.wants(2).count == 1
    b.ends(1)
    assert b.wants(1).is_spent


def test_nobody_goes_in_after_a_halt() -> None:
    limiter = RateLimiter(max_in_flight=10)
    worker = Worker(limiter)
    assert worker.wants(2).count == 2
    limiter.halt()
    grant = worker.wants(2)
    assert (grant.count, grant.reuses, grant.is_spent) == (0, 0, True)


def test_requests_per_minute_hold_over_all_workers() -> None:
    clock = Clock()
    limiter = RateLimiter(max_in_flight=10_000, requests_per_minute=600, now=clock)
    workers = [Worker(limiter, name) for name in "abc"]
    granted = 0
    for _ in range(600):  # a minute
        granted += sum(worker.wants(100).count for worker in workers)
        clock.s += 0.1
    assert 600 <= granted <= 612


def test_tokens_per_minute_follow_what_calls_really_take() -> None:
    clock = Clock()
    worker = Worker(RateLimiter(max_in_flight=10_000, tokens_per_minute=60_000, now=clock))
    count = 0
    for _ in range(6000):  # ten minutes
        worker.ends(count, tokens=500)
        count = worker.wants(100).count
        clock.s += 0.1
    assert 0.95 * 600_000 < worker.report.used.tokens < 1.05 * 600_000


def test_a_wait_is_as_long_as_the_rate_says() -> None:
    clock = Clock()
    worker = Worker(RateLimiter(max_in_flight=10, requests_per_minute=30, now=clock))
    assert worker.wants(1).count == 1
    grant = worker.wants(1)
    assert grant.count == 0 and grant.wait_s == pytest.approx(2.0)
    clock.s += grant.wait_s
    assert worker.wants(1).count == 1


def test_429_lowers_the_ceiling_for_all_and_answers_raise_it_again() -> None:
    clock = Clock()
    limiter = RateLimiter(max_in_flight=100, now=clock)
    a, b = Worker(limiter, "a"), Worker(limiter, "b")
    for _ in range(3):  # one blow, however many it hits
        a.ends(0, num_throttled=1)
        a.wants(0)
    assert limiter.ceiling == 75
    clock.s += 2
    b.ends(0, num_throttled=1)
    b.wants(0)
    assert limiter.ceiling == 56.25
    assert a.wants(100).count == 56
    a.ends(56, tokens=1)
    a.wants(0)
    assert limiter.ceiling == 56.25 + 56 / 25


def test_retry_after_holds_everybody() -> None:
    clock = Clock()
    limiter = RateLimiter(max_in_flight=100, now=clock)
    a, b = Worker(limiter, "a"), Worker(limiter, "b")
    a.ends(0, num_throttled=1, retry_after_s=7.0)
    a.wants(0)
    grant = b.wants(5)
    assert grant.count == 0 and grant.wait_s == pytest.approx(7.0) and not grant.is_spent
    clock.s += 7.0
    assert b.wants(5).count == 5


def test_calls_of_a_worker_that_died_do_not_count_for_ever() -> None:
    clock = Clock()
    limiter = RateLimiter(max_in_flight=4, now=clock)
    dead, alive = Worker(limiter, "dead"), Worker(limiter, "alive")
    assert (dead.wants(4).count, alive.wants(4).count) == (4, 0)
    clock.s += SILENT_S + 1
    assert alive.wants(4).count == 4
