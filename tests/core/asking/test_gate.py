"""The gate as a worker passes it: who comes while the last report waits is not kept waiting with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mme5core.asking import gate
from mme5core.asking.gate import SharedGate
from mme5core.asking.rates import Grant, RateLimiter, Usage
from tests.core.asking.server import LocalLimiter


def passed(handle: LocalLimiter, num_calls: int, num_slots: int, monkeypatch: Any) -> float:
    """Seconds for so many calls of no length in so many slots."""
    monkeypatch.setattr(gate, "REPORT_EVERY_S", 5.0)

    async def run() -> float:
        shared, slots = SharedGate(handle.exchange, "a"), asyncio.Semaphore(num_slots)

        async def call() -> None:
            async with slots:
                assert await shared.enter()
                await asyncio.sleep(0)
                shared.leave(prompt_tokens=10, completion_tokens=5)

        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(call() for _ in range(num_calls)))
        passed_s = loop.time() - started
        await shared.report()
        return passed_s

    return asyncio.run(run())


def test_a_call_that_comes_while_a_report_waits_passes_at_once(monkeypatch: Any) -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=4))
    # Each round of four would else wait for the five seconds of the report of the round before.
    assert passed(handle, 40, 4, monkeypatch) < 4.0
    assert handle.limiter.used.calls == 40


def test_many_calls_are_asked_for_together(monkeypatch: Any) -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=100, requests_per_minute=1e9))  # each is asked for
    passed(handle, 300, 100, monkeypatch)
    assert handle.limiter.used.calls == 300 and len(handle.reports) < 60


def test_who_comes_in_the_place_of_another_does_not_wait_for_the_limiter(monkeypatch: Any) -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=10))
    assert passed(handle, 49, 10, monkeypatch) < 1.0  # ten are asked for, and forty may follow them
    assert len(handle.reports) <= 3 and handle.limiter.used.calls == 49


def test_all_who_wait_are_told_that_the_budget_is_spent() -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=100, budget_calls=3))

    async def run() -> list[bool]:
        shared = SharedGate(handle.exchange, "a")

        async def call() -> bool:
            entered = await shared.enter()
            if entered:
                shared.leave()
            return entered

        return await asyncio.gather(*(call() for _ in range(10)))

    assert sorted(asyncio.run(run())) == [False] * 7 + [True] * 3


def test_a_worker_whose_calls_take_long_says_that_it_lives(monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "REPORT_EVERY_S", 0.02)
    handle = LocalLimiter(RateLimiter(max_in_flight=4))

    async def run() -> int:
        shared = SharedGate(handle.exchange, "a")
        assert await shared.enter()
        await asyncio.sleep(0.3)
        during = len(handle.reports)
        shared.leave()
        await asyncio.sleep(0.1)
        assert handle.limiter.in_flight == 0
        after = len(handle.reports)
        await asyncio.sleep(0.1)
        assert len(handle.reports) == after  # nothing is out: nothing to tell
        return during

    assert asyncio.run(run()) >= 5


def test_what_is_granted_to_a_call_that_is_gone_is_given_back() -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=2))

    async def run() -> None:
        shared = SharedGate(handle.exchange, "a")
        gone = asyncio.ensure_future(shared.enter())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0.5)
        assert handle.limiter.in_flight == 0

    asyncio.run(run())


def test_leave_for_many_is_had_at_once_as_far_as_there_is_room() -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=10, budget_calls=12))

    async def run() -> list[int]:
        shared = SharedGate(handle.exchange, "a")
        found = [await shared.enter_many(7), await shared.enter_many(7)]
        for _ in range(10):
            shared.leave()
        found.append(await shared.enter_many(7))
        for _ in range(2):
            shared.leave()
        return [*found, await shared.enter_many(7)]

    assert asyncio.run(run()) == [7, 3, 2, 0]


def test_what_an_earlier_run_sent_counts_as_in_flight_and_what_was_never_sent_costs_nothing() -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=10, used={"before": Usage(calls=5)}))

    async def run() -> None:
        shared = SharedGate(handle.exchange, "a")
        shared.inside(4)
        await shared.report()
        assert (handle.limiter.in_flight, handle.limiter.used.calls) == (4, 9)
        for _ in range(3):
            shared.leave(was_called=False)
        shared.leave(prompt_tokens=8)
        await shared.report()
        assert (handle.limiter.in_flight, handle.limiter.used) == (0, Usage(6, 1, 8, 0))

    asyncio.run(run())


def test_a_limiter_that_came_back_knows_what_is_in_flight_and_what_was_used() -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=10, budget_calls=6))

    async def run() -> list[int]:
        shared = SharedGate(handle.exchange, "a")
        granted = [await shared.enter_many(4)]
        handle.limiter = RateLimiter(max_in_flight=10, budget_calls=6)
        return [*granted, await shared.enter_many(4)]

    assert asyncio.run(run()) == [4, 2]


def test_who_waits_at_a_gate_that_fails_is_told_so() -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=1))

    async def fail(*_: Any) -> Grant:
        raise ConnectionError("the limiter is gone")

    handle.exchange = fail  # type: ignore[method-assign]

    async def run() -> None:
        with pytest.raises(ConnectionError, match="is gone"):
            await SharedGate(handle.exchange, "a").enter()

    asyncio.run(run())


def test_who_waits_at_a_gate_that_closes_is_told_so() -> None:
    handle = LocalLimiter(RateLimiter(max_in_flight=1))

    async def run() -> list[bool]:
        shared = SharedGate(handle.exchange, "a")
        assert await shared.enter()
        waiting = asyncio.ensure_future(shared.enter())
        await asyncio.sleep(0.05)
        shared.close()
        return [await waiting, await shared.enter()]

    assert asyncio.run(run()) == [False, False]


def test_a_worker_that_must_wait_long_says_meanwhile_that_it_lives(monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "HEARTBEAT_S", 0.02)
    handle = LocalLimiter(RateLimiter(max_in_flight=4))

    async def run() -> int:
        shared = SharedGate(handle.exchange, "a")
        assert await shared.enter()
        shared.leave(retry_after_s=60.0)
        waiting = asyncio.ensure_future(shared.enter())
        await asyncio.sleep(0.5)
        waiting.cancel()
        shared.close()
        return len(handle.reports)

    assert asyncio.run(run()) > 10


def test_a_report_waits_for_the_answer_to_the_one_before() -> None:
    """Else it would say that nothing is in flight while leave for calls is on its way, and the limiter forget them."""
    handle = LocalLimiter(RateLimiter(max_in_flight=4))
    answer, num_under_way, most = handle.exchange, 0, 0

    async def slowly(*report: Any) -> Grant:
        nonlocal num_under_way, most
        num_under_way += 1
        most = max(most, num_under_way)
        grant = await answer(*report)
        await asyncio.sleep(0.02)
        num_under_way -= 1
        return grant

    handle.exchange = slowly  # type: ignore[method-assign]

    async def run() -> None:
        shared = SharedGate(handle.exchange, "a")
        entering = asyncio.ensure_future(shared.enter_many(4))
        await asyncio.sleep(0.01)  # its question is under way
        await shared.report()  # as a worker does when one of its files is done
        assert await entering == 4 == handle.limiter.in_flight == handle.limiter.used.calls

    asyncio.run(run())
    assert most == 1
