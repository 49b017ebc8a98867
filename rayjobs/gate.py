"""The teacher's gate as workers pass it: one governor for all nodes, asked for several requests at a time."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from typing import Any

from mme5core.synthesis.rates import Governor, Grant, Report

TELL_EVERY_S = 0.2
ASK_EVERY_S = 0.002


class GovernorActor:
    """A `Governor` in a process of its own."""

    def __init__(self, **settings: Any) -> None:
        self._governor = Governor(**settings)

    def exchange(self, worker: str, report: Report, wanted: int) -> Grant:
        return self._governor.exchange(worker, report, wanted)

    def state(self) -> dict[str, Any]:
        """For the line of progress and the tests."""
        governor = self._governor
        return {"calls": governor.calls, "usd": governor.usd, "ceiling": governor.ceiling}


def start_governor(ray: Any, **settings: Any) -> Any:
    """The governor's actor, on this node: it ends with the job, which reads anew what was spent."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(GovernorActor).options(num_cpus=0, scheduling_strategy=here).remote(**settings)


class SharedGate:
    """A `Gate` before the governor's; belongs to one worker and its event loop."""

    def __init__(self, governor: Any) -> None:
        self._governor = governor
        self._worker = uuid.uuid4().hex
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._report = Report()
        self._task: asyncio.Task[None] | None = None
        self._somebody_waits = asyncio.Event()
        self._num_inside = 0

    async def enter(self) -> bool:
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._somebody_waits.set()
        self._start()
        return await waiter

    def leave(self, *, prompt_tokens: int = 0, completion_tokens: int = 0, retry_after_s: float | None = None) -> None:
        self._num_inside -= 1
        report = self._report
        report.num_ended += 1
        report.num_answered += bool(prompt_tokens or completion_tokens)
        report.prompt_tokens += prompt_tokens
        report.completion_tokens += completion_tokens
        if retry_after_s is not None:
            report.num_throttled += 1
            report.retry_after_s = max(report.retry_after_s, retry_after_s)
        self._start()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._exchange())

    async def _exchange(self) -> None:
        """Ask while somebody waits; else tell now and then what has ended, and that we live while calls are out."""
        while self._waiting or self._report.num_ended or self._num_inside:
            if not self._waiting:
                self._somebody_waits.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._somebody_waits.wait(), TELL_EVERY_S)
            report, self._report = self._report, Report()
            grant: Grant = await self._governor.exchange.remote(self._worker, report, len(self._waiting))
            for _ in range(len(self._waiting) if grant.is_spent else grant.count):
                self._let_in(self._waiting.popleft(), not grant.is_spent)
            if self._waiting:
                await asyncio.sleep(ASK_EVERY_S if grant.count else grant.wait_s)

    def _let_in(self, waiter: asyncio.Future[bool], is_granted: bool) -> None:
        if not waiter.done():
            waiter.set_result(is_granted)
            self._num_inside += is_granted
        elif is_granted:  # gone while it waited: what was granted is given back
            self._report.num_ended += 1
