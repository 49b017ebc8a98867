"""The teacher's gate as workers pass it: one governor for all nodes, asked for several requests at a time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mme5core.synthesis.pricing import Price
from mme5core.synthesis.rates import Governor, Grant, Report, Usage
from rayjobs.answers import used_by_worker

TELL_EVERY_S, SHOW_EVERY_S = 0.2, 1.0
ASK_EVERY_S, LIVES_EVERY_S = 0.002, 5.0


class GovernorActor:
    """A `Governor` in a process of its own. One that died comes back with what the log and the workers tell it.

    Args:
        answers: the folder of the log.
        used: what each worker has used, as the log told when the job began.
    """

    def __init__(self, answers: Path, used: Mapping[str, Usage], **settings: Any) -> None:
        import ray

        if ray.get_runtime_context().was_current_actor_reconstructed:
            used = used_by_worker(answers)
        self._governor = Governor(used=used, **settings)
        self._counts: dict[str, Mapping[str, int]] = {}

    def exchange(self, worker: str, report: Report, counts: Mapping[str, int], wanted: int) -> Grant:
        self._counts[worker] = counts
        return self._governor.exchange(worker, report, wanted)

    def state(self) -> dict[str, Any]:
        """What of the planned samples has been settled in this run, and what has been paid over all runs."""
        governor = self._governor
        counts = sum(map(Counter, self._counts.values()), Counter[str]())
        return {"counts": counts, "usd": governor.used.usd}

    def halt(self) -> None:
        self._governor.halt()


def start_governor(ray: Any, answers: Path, used: Mapping[str, Usage], **settings: Any) -> Any:
    """The governor's actor, on this node: it ends with the job."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(GovernorActor).options(**options).remote(answers, used, **settings)


@contextlib.contextmanager
def watched(ray: Any, governor: Any, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Calls `show` with the governor's state every second, from a thread of its own, and once at the end."""
    is_over = threading.Event()

    def look() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # one that is starting again
            show(ray.get(governor.state.remote(), timeout=SHOW_EVERY_S))

    def watch() -> None:
        while not is_over.wait(SHOW_EVERY_S):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        look()


class SharedGate:
    """A `Gate` before the governor's; belongs to one worker and its event loop.

    Args:
        worker: its name in the log of answers.
        price: of tokens; None: not known.
        least_wait_s: between one question and the next, where nothing was granted.

    Attributes:
        counts: planned samples that this worker has settled, by status; the governor is told.
    """

    def __init__(self, governor: Any, worker: str, *, price: Price | None = None, least_wait_s: float = 0.0) -> None:
        self._governor, self._worker = governor, worker
        self._price, self._least_wait_s = price or Price(0.0, 0.0), least_wait_s
        self._is_closed = False
        self.counts: Counter[str] = Counter()
        self._waiting: deque[tuple[asyncio.Future[int], int]] = deque()
        self._report = Report()
        self._has_news = False
        self._num_swaps = self._num_left = 0
        self._task: asyncio.Task[None] | None = None
        self._somebody_waits = asyncio.Event()
        self._telling = asyncio.Lock()  # a report that overtook a grant would not know of it

    async def enter(self) -> bool:
        return bool(await self.enter_many(1))

    async def enter_many(self, num_wanted: int) -> int:
        """Leave for some requests, at most so many and at least one; 0 when the budget is spent, or the gate closed."""
        if self._is_closed:
            return 0
        if num_wanted == 1 and not self._waiting and self._swap():
            return 1
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, num_wanted))
        self._somebody_waits.set()
        self._start()
        return await waiter

    def close(self) -> None:
        """Let nobody in any more, and tell those who wait; what is inside may leave."""
        self._is_closed, self._num_swaps = True, 0
        while self._waiting:
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(0)

    def _swap(self) -> bool:
        """Whether one more may go in at once, in the place of one that has ended."""
        if not self._num_swaps or not self._num_left:
            return False
        self._num_swaps, self._num_left = self._num_swaps - 1, self._num_left - 1
        self._went_in(1)
        return True

    def inside(self, num_requests: int) -> None:
        """Requests that are with the server without having entered here: those of an earlier run."""
        self._went_in(num_requests)
        self._start()

    def leave(
        self,
        *,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        retry_after_s: float | None = None,
        was_called: bool = True,
    ) -> None:
        report = self._report
        report.num_in_flight -= 1
        self._num_left += 1
        is_answered = bool(prompt_tokens or completion_tokens)
        usd = self._price.of(prompt_tokens, completion_tokens)
        report.used += Usage(0 if was_called else -1, int(is_answered), prompt_tokens, completion_tokens, usd)
        if retry_after_s is not None:
            report.num_throttled += 1
            report.retry_after_s = max(report.retry_after_s, retry_after_s)
            self._num_swaps = 0
            self._somebody_waits.set()  # all others should know
        while self._waiting and self._waiting[0][1] == 1 and self._swap_in():
            pass
        self._start()

    def _swap_in(self) -> bool:
        """Whether the first who waits, for one request, went in without asking."""
        if self._waiting[0][0].done():  # gone while it waited
            self._waiting.popleft()
            return True
        if self._swap():
            self._waiting.popleft()[0].set_result(1)
            return True
        return False

    def _went_in(self, num_requests: int) -> None:
        self._report.num_in_flight += num_requests
        self._report.used += Usage(calls=num_requests)

    def _start(self) -> None:
        self._has_news = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._exchange())

    async def _exchange(self) -> None:
        """Ask while somebody waits; else tell now and then what has ended, and that we live while calls are out."""
        try:
            while self._waiting or self._has_news or self._report.num_in_flight:
                if not self._waiting:
                    self._somebody_waits.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._somebody_waits.wait(), TELL_EVERY_S)
                grant = await self.tell()
                if self._waiting:
                    wait_s = ASK_EVERY_S if grant.count else max(grant.wait_s, self._least_wait_s)
                    await asyncio.sleep(min(wait_s, LIVES_EVERY_S))  # a worker that says nothing for long is gone
        except Exception as error:
            for waiter, _ in self._waiting:  # they would wait for ever
                if not waiter.done():
                    waiter.set_exception(error)
            self._waiting.clear()

    async def tell(self) -> Grant:
        """Tell the governor how things stand now, and let in whom it grants leave."""
        async with self._telling:
            report, wanted = replace(self._report), sum(number for _, number in self._waiting)
            self._report.retry_after_s, self._has_news = 0.0, False
            self._num_swaps = self._num_left = 0  # the report says who has left; the answer to it, who may follow
            told = self._worker, report, dict(self.counts), wanted
            grant: Grant = await self._governor.exchange.remote(*told)
            self._let_in(grant)
            return grant

    def _let_in(self, grant: Grant) -> None:
        left, self._num_swaps = grant.count, 0 if self._is_closed else grant.swaps
        while self._waiting and (left or grant.is_spent):
            waiter, wanted = self._waiting.popleft()
            if waiter.done():  # gone while it waited
                continue
            count = min(left, wanted)
            left -= count
            self._went_in(count)
            waiter.set_result(count)
        self._has_news |= bool(left)  # granted to one who is gone: the next report gives it back
