"""Tests of who may send a request: budgets, rates and the ceiling, with a clock of their own."""

from __future__ import annotations

import random

import pytest

from mme5core.synthesis.pricing import Price
from mme5core.synthesis.rates import SILENT_S, Governor, Report


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def ended(num: int, *, tokens: int = 0) -> Report:
    return Report(num_ended=num, num_answered=num if tokens else 0, prompt_tokens=num * tokens)


def test_never_more_in_flight_than_the_ceiling_over_all_workers() -> None:
    governor = Governor(max_in_flight=10)
    assert governor.exchange("a", Report(), 6).count == 6
    assert governor.exchange("b", Report(), 6).count == 4
    assert governor.exchange("a", Report(), 6).count == 0
    assert governor.exchange("a", ended(3), 6).count == 3


def test_a_budget_of_calls_is_kept_to_the_call() -> None:
    governor = Governor(max_in_flight=100, budget_calls=10, calls=4)
    assert governor.exchange("a", Report(), 5).count == 5
    assert governor.exchange("b", Report(), 5).count == 1
    last = governor.exchange("b", Report(), 1)
    assert last.count == 0 and last.is_spent
    assert governor.calls == 10


def test_a_budget_of_nothing_is_spent_at_once() -> None:
    for budget in ({"budget_calls": 0}, {"budget_usd": 0.0, "price": Price(1, 1)}):
        grant = Governor(max_in_flight=5, **budget).exchange("a", Report(), 3)  # type: ignore[arg-type]
        assert grant.count == 0 and grant.is_spent


@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("seed", range(5))
def test_a_budget_of_money_is_passed_by_no_more_than_what_was_in_flight(num_workers: int, seed: int) -> None:
    draw = random.Random(seed)
    governor = Governor(max_in_flight=20, budget_usd=1.0, price=Price(1.0, 1.0))  # a million tokens
    in_flight = {str(n): 0 for n in range(num_workers)}
    spent, costs_in_flight = 0, 0.0
    while True:
        worker = draw.choice(list(in_flight))
        num_ended = draw.randint(0, in_flight[worker])
        tokens = [draw.randint(5_000, 30_000) for _ in range(num_ended)]
        spent += sum(tokens)
        in_flight[worker] -= num_ended
        report = Report(num_ended, num_ended, sum(tokens), 0)
        grant = governor.exchange(worker, report, 20)
        in_flight[worker] += grant.count
        if grant.count:
            assert spent < 1_000_000  # nothing starts once it is spent
            costs_in_flight = sum(in_flight.values()) * 30_000
        if grant.is_spent:
            break
    assert spent + sum(in_flight.values()) * 5_000 > 900_000  # and it is used
    assert spent + sum(in_flight.values()) * 30_000 < 1_000_000 + costs_in_flight


def test_money_without_a_price_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a price"):
        Governor(max_in_flight=1, budget_usd=1.0)


def test_requests_per_minute_hold_over_all_workers() -> None:
    clock = Clock()
    governor = Governor(max_in_flight=10_000, requests_per_minute=600, now=clock)
    granted = 0
    for _ in range(600):  # a minute
        for worker in "abc":
            granted += governor.exchange(worker, Report(), 100).count
        clock.s += 0.1
    assert 600 <= granted <= 612


def test_tokens_per_minute_follow_what_calls_really_take() -> None:
    clock = Clock()
    governor = Governor(max_in_flight=10_000, tokens_per_minute=60_000, now=clock)
    used = count = 0
    for _ in range(6000):  # ten minutes
        report = ended(count, tokens=500)
        used += report.prompt_tokens
        count = governor.exchange("a", report, 100).count
        clock.s += 0.1
    assert 0.95 * 600_000 < used < 1.05 * 600_000


def test_a_wait_is_as_long_as_the_rate_says() -> None:
    clock = Clock()
    governor = Governor(max_in_flight=10, requests_per_minute=30, now=clock)
    assert governor.exchange("a", Report(), 1).count == 1
    grant = governor.exchange("a", Report(), 1)
    assert grant.count == 0 and grant.wait_s == pytest.approx(2.0)
    clock.s += grant.wait_s
    assert governor.exchange("a", Report(), 1).count == 1


def test_429_lowers_the_ceiling_for_all_and_answers_raise_it_again() -> None:
    clock = Clock()
    governor = Governor(max_in_flight=100, now=clock)
    for _ in range(3):  # one blow, however many it hits
        governor.exchange("a", Report(num_ended=1, num_throttled=1), 0)
    assert governor.ceiling == 75
    clock.s += 2
    governor.exchange("b", Report(num_ended=1, num_throttled=1), 0)
    assert governor.ceiling == 56.25
    assert governor.exchange("a", Report(), 100).count == 56
    governor.exchange("a", ended(56, tokens=1), 0)
    governor.exchange("a", Report(num_ended=0, num_answered=44, prompt_tokens=44), 0)
    assert governor.ceiling == 60.25


def test_retry_after_holds_everybody() -> None:
    clock = Clock()
    governor = Governor(max_in_flight=100, now=clock)
    governor.exchange("a", Report(num_ended=1, num_throttled=1, retry_after_s=7.0), 0)
    grant = governor.exchange("b", Report(), 5)
    assert grant.count == 0 and grant.wait_s == pytest.approx(7.0) and not grant.is_spent
    clock.s += 7.0
    assert governor.exchange("b", Report(), 5).count == 5


def test_calls_of_a_worker_that_died_do_not_count_for_ever() -> None:
    clock = Clock()
    governor = Governor(max_in_flight=4, now=clock)
    assert governor.exchange("dead", Report(), 4).count == 4
    assert governor.exchange("alive", Report(), 4).count == 0
    clock.s += SILENT_S + 1
    assert governor.exchange("alive", Report(), 4).count == 4
