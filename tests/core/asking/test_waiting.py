"""How long is waited: limits on a call, pauses that a server asks for, and that they end when the job must."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from mme5core.asking.client import Client
from mme5core.asking.failures import ServerUnavailable
from mme5core.asking.gate import SharedGate
from mme5core.asking.rates import Grant, RateLimiter, Report
from mme5core.asking.request import Request
from mme5core.asking.retry_after import LONGEST_S, retry_after_s
from mme5core.errors import RESUMABLE
from tests.core.asking.server import ANSWER, NUM_PICTURES, LocalLimiter, Reply, Work

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "body", "wait_s"),
    [
        ({"retry-after": "7"}, {}, 7.0),
        ({"retry-after": "0.5"}, {}, 0.5),
        ({"retry-after": "1m30s"}, {}, 90.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, {}, 0.25),
        ({"retry-after": formatdate(NOW + 12, usegmt=True)}, {}, 13.0),
        ({"retry-after": formatdate(NOW + 12, usegmt=True), "date": formatdate(NOW + 5, usegmt=True)}, {}, 8.0),
        ({"retry-after": formatdate(NOW - 12, usegmt=True)}, {}, 1.0),
        ({"retry-after": "-3"}, {}, 0.0),
        ({"retry-after": "999999999"}, {}, LONGEST_S),
        ({"retry-after": "soon"}, {}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, {}, 360.0),
        ({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "6m0s"}, {}, None),
        ({}, {"error": {"details": [{"@type": "RetryInfo", "retryDelay": "38.5s"}]}}, 38.5),
        ({}, {"error": {"message": "Please try again in 20s. Visit the page."}}, 20.0),
        ({}, {"error": {"message": "Please try again in 1h2m3s"}}, 3723.0),
        ({}, {"error": {"message": "try again in 350ms"}}, 0.35),
        ({}, {"detail": "Retry after 5 seconds"}, 5.0),
        ({}, {"detail": "try again later"}, None),
        ({}, "a page", None),
    ],
)
def test_a_wait_is_read_in_each_form(headers: Mapping[str, str], body: Any, wait_s: float | None) -> None:
    assert retry_after_s(headers, body, now=NOW) == (None if wait_s is None else pytest.approx(wait_s))


def test_no_request_comes_before_the_date_that_a_server_names(work: Work, serve: Any) -> None:
    started: list[float] = []
    late: list[float] = []

    def reply(request: dict[str, Any], n: int) -> Reply:
        started.append(time.time())
        if time.time() < started[0] + 3:
            late.append(time.time() - started[0])
            return 429, {"error": "slow down"}, {"retry-after": formatdate(started[0] + 3, usegmt=True)}
        return ANSWER

    counts, stop = work.ask(serve(reply).base_url, form="json_schema")
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0
    assert max(late) < 1.0  # those that were in flight together


class Dripping(BaseHTTPRequestHandler):
    """Sends a byte of its answer every tenth of a second."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        for _ in range(1000):
            try:
                self.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.1)

    def log_message(self, *_: object) -> None: ...


def test_a_server_that_drips_is_given_up_after_the_limit_of_the_whole_call() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    server.daemon_threads = True
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    async def ask() -> None:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        client = Client(url, "m", role="teacher", api_key=None, timeout_s=0.5, max_attempts=1, form="plain")
        try:
            await client.ask(Request("s", "u", [], {}, "w", 0))
        finally:
            await client.close()

    started = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"no answer from the teacher in 0\.5 s") as caught:
        asyncio.run(ask())
    assert time.monotonic() - started < 5 and caught.value.unreachable and caught.value.calls == 1
    server.shutdown()
    server.server_close()


def test_a_pause_ends_when_the_job_is_told_to_stop(work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    per_day: Reply = (429, {"error": {"message": "limit per day"}}, {"retry-after": "3600"})
    exchange, stopped_s = LocalLimiter.exchange, []

    async def exchange_and_stop(self: LocalLimiter, *args: Any) -> Grant:
        if self.limiter.paused_s and not stopped_s:
            stopped_s.append(time.monotonic())
            self.limiter.halt()
        return await exchange(self, *args)

    monkeypatch.setattr(LocalLimiter, "exchange", exchange_and_stop)
    served = serve(lambda request, n: ANSWER if n <= 3 else per_day)
    counts, stop = work.ask(served.base_url)
    assert time.monotonic() - stopped_s[0] < 5
    assert counts == {"kept": 3, "pending": NUM_PICTURES - 3} and (stop.code, stop.is_budget_spent) == (RESUMABLE, True)
    (note,) = [note for note in work.notes if "to wait" in note]
    assert note == "429 from the teacher: limit per day; it asks to wait 1 h 0 min"


def test_a_gate_that_waits_is_heard_of_and_hears_of_the_end() -> None:
    limiter, reports = RateLimiter(max_in_flight=4), []

    async def exchange(worker: str, report: Report, counts: Mapping[str, int], wanted: int) -> Grant:
        reports.append(report)
        if len(reports) == 3:
            limiter.halt()
        return limiter.exchange(worker, report, wanted)

    async def run() -> float:
        gate, started = SharedGate(exchange, "w"), time.monotonic()
        await gate.pause(3600)
        assert not await gate.enter()
        return time.monotonic() - started

    assert asyncio.run(run()) < 10 and len(reports) >= 3


def test_the_limiter_tells_for_how_long_it_grants_nothing() -> None:
    now = [0.0]
    limiter = RateLimiter(max_in_flight=4, now=lambda: now[0])
    limiter.exchange("w", Report(num_throttled=1, retry_after_s=60.0), 1)
    now[0] = 20.0
    assert limiter.paused_s == 40.0
    now[0] = 80.0
    assert limiter.paused_s == 0.0
