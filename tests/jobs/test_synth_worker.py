"""The actor that asks, without Ray: what servers do to it, what it writes, when it stops."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from mme5core.readers import AS_IT_IS
from mme5core.synthesis.plan import PlanSettings
from mme5core.synthesis.pricing import Price
from mme5core.synthesis.rates import Governor, Grant, Report
from rayjobs import cli
from rayjobs.answers import ANSWERED, REJECTED, AnswerLog
from rayjobs.config import FilterConfig
from rayjobs.picture_filters import PictureKey
from rayjobs.planning import Plan, make_plan
from rayjobs.synth_worker import REJECTED_IN_A_ROW, AskTeacher, Pictures, Rules, Stop
from tests.jobs.indexes import indexed

NUM_PICTURES = 40
GOOD = {
    "images": [],
    "draft": {},
    "evaluation": {},
    "improvements": "",
    "revision": {"instruction": "Find it.", "query": "what?", "positive": "a cat", "negatives": ["a dog"]},
}
Reply = tuple[int, Any, dict[str, str]]
"""Status, body, further headers."""


def completion(text: str, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


ANSWER: Reply = (200, completion(json.dumps(GOOD)), {})


class Served:
    """A server that replies as it is told, and remembers what it was asked."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                served.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                status, body, headers = reply(served.requests[-1], len(served.requests))
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "text/html" if isinstance(body, str) else "application/json")
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any], int], Reply]], Served]]:
    running: list[Served] = []

    def start(reply: Callable[[dict[str, Any], int], Reply]) -> Served:
        running.append(Served(reply))
        return running[-1]

    yield start
    for served in running:
        served.server.shutdown()
        served.server.server_close()


class LocalGovernor:
    """A governor as an actor's handle gives it."""

    def __init__(self, governor: Governor) -> None:
        self.governor = governor
        self.exchange = SimpleNamespace(remote=self._exchange)

    async def _exchange(self, worker: str, report: Report, wanted: int) -> Grant:
        return self.governor.exchange(worker, report, wanted)


class Work:
    """A plan of a sample for each of some pictures, and the log of its answers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "pictures").mkdir()
        for number in range(NUM_PICTURES):
            Image.new("RGB", (8, 8), (number, 99, 7)).save(root / "pictures" / f"{number:02d}.png")
        index = indexed(root, [root / "pictures"], PictureKey(FilterConfig().model_dump()))
        settings = PlanSettings(tasks={"vqa": 1.0}, languages=["en"])
        self.plan: Plan = make_plan(index, settings, root, neighbours=None, num_workers=1)
        self.answers = root / "answers"
        self.answers.mkdir()

    def ask(
        self,
        base_url: str,
        *,
        numbers: list[int] | None = None,
        cache: Path | None = None,
        key: str | None = None,
        **more: Any,
    ) -> tuple[Counter[str], Stop]:
        """Counts by status, and why it stopped (code 0: it did not)."""
        teacher = {"base_url": base_url, "model": "m", "concurrency": 4, "max_attempts": 2, "timeout_s": 5.0}
        budget = {name: more.pop(name) for name in ("budget_calls", "budget_usd", "price") if name in more}
        governor = LocalGovernor(Governor(max_in_flight=4, **budget))
        pictures = Pictures(self.plan.shards, ("",), AS_IT_IS)
        actor = AskTeacher(
            teacher | more, self.plan, pictures, Rules(1, None), budget.get("price"), str(self.answers),
            None if cache is None else str(cache), governor, key,
        )  # fmt: skip
        missing = list(range(len(self.plan))) if numbers is None else numbers

        async def run() -> tuple[Counter[str], Stop]:
            counts: Counter[str] = Counter()
            stop = Stop(0, "")
            async for told in actor(pa.table({"file": [0], "missing": [missing]})):
                for status, count, code, reason in zip(
                    told["status"], told["count"], told["stop_code"], told["stop_reason"], strict=True
                ):
                    counts[status] += count
                    stop = Stop(code, reason) if code else stop
            counts.pop("", None)
            return counts, stop

        return asyncio.run(run())

    def log(self) -> AnswerLog:
        return AnswerLog(self.answers, len(self.plan), self.root / "places")

    def statuses(self) -> Counter[str | None]:
        return Counter(entry and entry.status for entry in self.log().reader().entries(0, len(self.plan)))


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_every_answer_is_in_the_log_with_what_it_took(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    counts, stop = work.ask(served.base_url, price=Price(10.0, 50.0))
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0
    log = work.log()
    assert (log.num_done, log.usage.calls, log.usage.prompt_tokens) == (NUM_PICTURES, NUM_PICTURES, 100 * NUM_PICTURES)
    entry = log.reader().entries(7, 8)[0]
    assert entry and entry.value["usd"] == pytest.approx(0.002) and entry.value["mode"] == "json_schema"
    assert len({request["seed"] for request in served.requests}) == NUM_PICTURES
    assert "response_format" in served.requests[0] and served.requests[0]["model"] == "m"


@pytest.mark.parametrize(
    ("reply", "key", "message"),
    [
        ((401, {"error": {"message": "no"}}, {}), None, "wants a key, and OPENAI_API_KEY is not set (401)"),
        ((401, {"error": {"message": "no"}}, {}), "sk-secret", "refused the key (401)"),
        ((404, {"error": {"message": "no"}}, {}), None, "knows no model 'm' at this address"),
        ((200, "<html>Welcome</html>", {}), None, "answers, but not with chat completions"),
        ((429, {"error": {"message": "no", "code": "insufficient_quota"}}, {}), None, "no money left"),
    ],
)
def test_what_no_request_can_mend_stops_at_once(
    reply: Reply, key: str | None, message: str, work: Work, serve: Any
) -> None:
    served = serve(lambda request, n: reply)
    counts, stop = work.ask(served.base_url, key=key)
    assert stop.code == cli.BAD_INPUT and message in stop.reason and "secret" not in stop.reason
    assert counts == {"pending": NUM_PICTURES} and len(served.requests) <= 8
    assert work.statuses() == {None: NUM_PICTURES}


def test_a_server_that_rejects_everything_stops_early_and_nothing_is_refused_for_it(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (400, {"error": {"message": "temperature is not supported"}}, {}))
    counts, stop = work.ask(served.base_url)
    assert stop.code == cli.BAD_INPUT
    assert "rejects every request" in stop.reason and "temperature is not supported" in stop.reason
    assert counts == {"pending": NUM_PICTURES} and work.statuses() == {None: NUM_PICTURES}
    # Each in three forms, until it is clear; and all of it was paid for.
    assert len(served.requests) <= 3 * (REJECTED_IN_A_ROW + 4)
    assert work.log().usage.calls >= 3 * REJECTED_IN_A_ROW


def test_pictures_that_the_server_rejects_are_refused_and_the_others_kept(work: Work, serve: Any) -> None:
    bad = {0, 1, 2, 20}
    seeds = [row["id"] for row in work.plan.rows(0)]

    def reply(request: dict[str, Any], n: int) -> Reply:
        from mme5core.synthesis.plan import PlannedSample

        of = next(i for i, name in enumerate(seeds) if PlannedSample(name, "", "", "").seed == request["seed"])
        return (400, {"error": {"message": "image too small"}}, {}) if of in bad else ANSWER

    counts, stop = work.ask(serve(reply).base_url)
    assert stop.code == 0 and counts["kept"] == NUM_PICTURES - len(bad)
    # Those before the first answer were held back until there was one.
    assert work.statuses() == {ANSWERED: NUM_PICTURES - len(bad), REJECTED: len(bad)}


@pytest.mark.parametrize(
    ("refused", "mode"), [(["json_schema"], "json_object"), (["json_schema", "json_object"], "plain")]
)
def test_a_server_without_schemas_is_asked_in_a_form_that_it_takes(
    refused: list[str], mode: str, work: Work, serve: Any
) -> None:
    def reply(request: dict[str, Any], n: int) -> Reply:
        form = request.get("response_format", {}).get("type")
        return (400, {"error": {"message": f"{form} is not supported"}}, {}) if form in refused else ANSWER

    served = serve(reply)
    counts, _ = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES}
    assert len(served.requests) == NUM_PICTURES + len(refused)  # found out once
    entry = work.log().reader().entries(5, 6)[0]
    assert entry and entry.value["mode"] == mode
    last = served.requests[-1]["messages"][1]["content"][0]["text"]
    assert "Answer with one JSON object of this form" in last


def test_a_server_that_never_answers_is_one_line_and_code_3(work: Work, serve: Any) -> None:
    import time

    def reply(request: dict[str, Any], n: int) -> Reply:
        time.sleep(1.5)
        return ANSWER

    counts, stop = work.ask(serve(reply).base_url, timeout_s=0.2, max_attempts=1)
    assert stop.code == cli.RESUMABLE and "no answer from the teacher in 0.2 s" in stop.reason
    assert counts["pending"] == NUM_PICTURES and work.log().usage.calls >= 3


def test_a_server_that_is_not_there_is_one_line_with_its_address_and_code_3(work: Work) -> None:
    counts, stop = work.ask("http://127.0.0.1:9/v1", max_attempts=1)
    assert stop.code == cli.RESUMABLE and "cannot reach the teacher" in stop.reason and "127.0.0.1:9" in stop.reason
    assert counts == {"pending": NUM_PICTURES}


def test_passing_failures_are_tried_again_and_counted(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (503, {}, {}) if n % 3 == 0 else ANSWER)
    counts, stop = work.ask(served.base_url, max_attempts=6)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0
    assert work.log().usage.calls == len(served.requests) > NUM_PICTURES


def test_a_budget_of_calls_is_kept_and_a_budget_of_none_asks_nothing(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    counts, stop = work.ask(served.base_url, budget_calls=0)
    assert stop.code == cli.RESUMABLE and "budget" in stop.reason and not served.requests
    counts, stop = work.ask(served.base_url, budget_calls=10)
    assert stop.code == cli.RESUMABLE and len(served.requests) == 10 and counts["kept"] == 10


def test_what_was_asked_before_to_the_letter_comes_from_the_cache(work: Work, serve: Any, tmp_path: Path) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url)
    cache = work.answers.rename(tmp_path / "cache")
    work.answers.mkdir()
    counts, _ = work.ask(served.base_url, cache=cache)
    assert counts == {"kept": NUM_PICTURES} and len(served.requests) == NUM_PICTURES
    assert work.log().usage.calls == 0  # nothing was paid
    work.ask(served.base_url, cache=cache, temperature=0.5, numbers=[0])
    assert len(served.requests) == NUM_PICTURES + 1  # another request


def test_a_picture_that_is_gone_stops_the_job_and_says_which(work: Work, serve: Any) -> None:
    (work.root / "pictures" / "03.png").unlink()
    counts, stop = work.ask(serve(lambda request, n: ANSWER).base_url, numbers=[3])
    assert stop.code == cli.FAILED and "03.png" in stop.reason and counts == {"pending": 1}


def test_formats_that_servers_do_not_take_are_sent_as_jpeg(tmp_path: Path) -> None:
    import io

    from mme5core.synthesis.requests import sendable

    for kind, as_it_is in (
        ("PNG", True),
        ("JPEG", True),
        ("WEBP", True),
        ("GIF", False),
        ("BMP", False),
        ("TIFF", False),
    ):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9), (200, 10, 10)).save(buffer, kind)
        sent = sendable(buffer.getvalue())
        assert (sent == buffer.getvalue()) == as_it_is
        assert as_it_is or sent.startswith(b"\xff\xd8\xff")
