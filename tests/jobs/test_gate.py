"""The gate as a worker passes it: who comes while the last report waits is not kept waiting with it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from mme5core.synthesis.rates import Governor, Grant, Report
from rayjobs import gate
from rayjobs.gate import SharedGate


class Handle:
    """An actor's handle to a governor, which counts how often it is asked."""

    def __init__(self, governor: Governor) -> None:
        self.governor, self.reports = governor, list[Report]()
        self.exchange = SimpleNamespace(remote=self._exchange)

    async def _exchange(self, worker: str, report: Report, wanted: int) -> Grant:
        self.reports.append(report)
        return self.governor.exchange(worker, report, wanted)


def passed(handle: Handle, num_calls: int, num_slots: int, monkeypatch: Any) -> float:
    """Seconds for so many calls of no length in so many slots."""
    monkeypatch.setattr(gate, "TELL_EVERY_S", 5.0)

    async def run() -> float:
        shared, slots = SharedGate(handle), asyncio.Semaphore(num_slots)

        async def call() -> None:
            async with slots:
                assert await shared.enter()
                await asyncio.sleep(0)
                shared.leave(prompt_tokens=10, completion_tokens=5)

        loop = asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(call() for _ in range(num_calls)))
        return loop.time() - started

    return asyncio.run(run())


def test_a_call_that_comes_while_a_report_waits_passes_at_once(monkeypatch: Any) -> None:
    handle = Handle(Governor(max_in_flight=4))
    # Each round of four would else wait for the five seconds of the report of the round before.
    assert passed(handle, 40, 4, monkeypatch) < 4.0
    assert handle.governor.calls == 40


def test_many_calls_are_asked_for_together(monkeypatch: Any) -> None:
    handle = Handle(Governor(max_in_flight=100))
    passed(handle, 300, 100, monkeypatch)
    assert handle.governor.calls == 300 and len(handle.reports) < 60


def test_all_who_wait_are_told_that_the_budget_is_spent() -> None:
    handle = Handle(Governor(max_in_flight=100, budget_calls=3))

    async def run() -> list[bool]:
        shared = SharedGate(handle)
        return await asyncio.gather(*(shared.enter() for _ in range(10)))

    assert sorted(asyncio.run(run())) == [False] * 7 + [True] * 3


def test_a_worker_whose_calls_take_long_says_that_it_lives(monkeypatch: Any) -> None:
    monkeypatch.setattr(gate, "TELL_EVERY_S", 0.02)
    handle = Handle(Governor(max_in_flight=4))

    async def run() -> int:
        shared = SharedGate(handle)
        assert await shared.enter()
        await asyncio.sleep(0.3)
        during = len(handle.reports)
        shared.leave()
        await asyncio.sleep(0.1)
        assert handle.governor.in_flight == 0
        after = len(handle.reports)
        await asyncio.sleep(0.1)
        assert len(handle.reports) == after  # nothing is out: nothing to tell
        return during

    assert asyncio.run(run()) >= 5


def test_what_is_granted_to_a_call_that_is_gone_is_given_back() -> None:
    handle = Handle(Governor(max_in_flight=2))

    async def run() -> None:
        shared = SharedGate(handle)
        gone = asyncio.ensure_future(shared.enter())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0.5)
        assert handle.governor.in_flight == 0

    asyncio.run(run())
