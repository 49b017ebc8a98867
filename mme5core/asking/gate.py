"""The gate that a worker's requests pass: permits from a rate limiter that all workers share."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from mme5core.asking.pricing import Price
from mme5core.asking.rates import Grant, Report, Usage

REPORT_EVERY_S, ASK_EVERY_S = 0.2, 0.002
HEARTBEAT_S = 1.0  # so often a worker that waits hears whether the job was told to stop

MOST_NOTES = 20

Exchange = Callable[[str, Report, Mapping[str, int], int], Awaitable[Grant]]
"""Sends a worker's report to the rate limiter and brings its grant: (worker, report, counts, permits wanted)."""


class SharedGate:
    """The gate of one worker and its event loop; permits come from the rate limiter, several per exchange.

    Args:
        exchange: talks to the rate limiter.
        worker: its name in the log of answers.
        price: of tokens; None: not known.
        least_wait_s: between two exchanges, where nothing was granted.

    Attributes:
        counts: records that this worker has settled, by status; they travel with the reports.
    """

    def __init__(
        self, exchange: Exchange, worker: str, *, price: Price | None = None, least_wait_s: float = 0.0
    ) -> None:
        self._send, self._worker = exchange, worker
        self._price, self._least_wait_s = price or Price(0.0, 0.0), least_wait_s
        self._is_closed = False
        self.counts: Counter[str] = Counter()
        self._waiting: deque[tuple[asyncio.Future[int], int]] = deque()
        self._report = Report()
        self._has_news = False
        self._num_reuses = self._num_left = 0
        self._task: asyncio.Task[None] | None = None
        self._somebody_waits = asyncio.Event()
        self._num_pausing, self._is_over = 0, asyncio.Event()
        self._exchanging = asyncio.Lock()  # a report that overtook a grant would not count its calls

    async def enter(self) -> bool:
        return bool(await self.enter_many(1))

    async def enter_many(self, num_wanted: int) -> int:
        """Permits for at most so many requests and at least one; 0 when the budget is spent, or the gate closed."""
        if self._is_closed:
            return 0
        if num_wanted == 1 and not self._waiting and self._reuse():
            return 1
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, num_wanted))
        self._somebody_waits.set()
        self._start()
        return await waiter

    async def pause(self, seconds: float) -> None:
        """Wait before a request is tried again; ends early when no request may enter any more."""
        self._num_pausing += 1
        self._start()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_over.wait(), seconds)
        finally:
            self._num_pausing -= 1

    def note(self, text: str) -> None:
        """Tell the people who watch the job; it travels with the reports."""
        if text not in self._report.notes:
            self._report.notes = (*self._report.notes, text)[:MOST_NOTES]
            self._start()

    def close(self) -> None:
        """Let no request in any more, and wake those that wait; requests inside may leave."""
        self._is_closed, self._num_reuses = True, 0
        self._is_over.set()
        while self._waiting:
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(0)

    def _reuse(self) -> bool:
        """Whether one more may go in at once, with the permit of one that has ended."""
        if not self._num_reuses or not self._num_left:
            return False
        self._num_reuses, self._num_left = self._num_reuses - 1, self._num_left - 1
        self._went_in(1)
        return True

    def inside(self, num_requests: int) -> None:
        """Count requests that are with the server without having entered here: those of an earlier run."""
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
            self._num_reuses = 0
            self._somebody_waits.set()  # the other workers should slow down too
        while self._waiting and self._waiting[0][1] == 1 and self._reuse_for_first():
            pass
        self._start()

    def _reuse_for_first(self) -> bool:
        """Whether the first waiter, which wants one permit, went in by reuse."""
        if self._waiting[0][0].done():  # cancelled while it waited
            self._waiting.popleft()
            return True
        if self._reuse():
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
        """Ask while somebody waits; else report now and then what has ended, as a heartbeat while calls are out."""
        try:
            while self._waiting or self._has_news or self._report.num_in_flight or self._num_pausing:
                if not self._waiting:
                    self._somebody_waits.clear()
                    is_idle = not self._has_news and not self._report.num_in_flight
                    with contextlib.suppress(TimeoutError):
                        wait_s = HEARTBEAT_S if is_idle else REPORT_EVERY_S
                        await asyncio.wait_for(self._somebody_waits.wait(), wait_s)
                grant = await self.report()
                if self._waiting:
                    wait_s = ASK_EVERY_S if grant.count else max(grant.wait_s, self._least_wait_s)
                    await asyncio.sleep(min(wait_s, HEARTBEAT_S))  # a worker without a heartbeat counts as dead
        except Exception as error:
            for waiter, _ in self._waiting:  # else they would wait for ever
                if not waiter.done():
                    waiter.set_exception(error)
            self._waiting.clear()

    async def report(self) -> Grant:
        """Report how things stand now, and let in as many as the rate limiter grants permits for."""
        async with self._exchanging:
            report, wanted = replace(self._report), sum(number for _, number in self._waiting)
            self._report.retry_after_s, self._has_news = 0.0, False
            self._num_reuses = self._num_left = (
                0  # the report covers those that have left; its answer grants new reuses
            )
            grant = await self._send(self._worker, report, dict(self.counts), wanted)
            self._let_in(grant)
            return grant

    def _let_in(self, grant: Grant) -> None:
        left, self._num_reuses = grant.count, 0 if self._is_closed else grant.reuses
        if grant.is_spent:
            self._is_over.set()
        while self._waiting and (left or grant.is_spent):
            waiter, wanted = self._waiting.popleft()
            if waiter.done():  # cancelled while it waited
                continue
            count = min(left, wanted)
            left -= count
            self._went_in(count)
            waiter.set_result(count)
        self._has_news |= bool(left)  # granted to a cancelled waiter: the next report gives it back
