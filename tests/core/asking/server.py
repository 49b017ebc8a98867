"""A server that replies as it is told, a plan of a few samples, and a worker that asks for them, without Ray."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from PIL import Image

from mme5core.asking.answer_log import Entry, Survey, entries_of
from mme5core.asking.batch_record import num_with_server
from mme5core.asking.known_form import KnownForm
from mme5core.asking.patience import Stop
from mme5core.asking.rates import Grant, RateLimiter, Report, Usage
from mme5core.asking.settings import ServerSettings
from mme5core.asking.worker import Asking, Worker
from mme5core.corpus.picture_filters import FilterSettings, PictureKey
from mme5core.corpus.stored_pictures import StoredPictures
from mme5core.demo.batches import DemoBatches
from mme5core.readers import AS_IT_IS
from mme5core.storage import AnyPath
from mme5core.synthesis.plan import PlanSettings
from mme5core.synthesis.planning import Plan, make_plan
from mme5core.synthesis.question import Synthesis
from tests.core.corpus.indexes import indexed

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
    """A server that replies as it is told, call by call and in batches, and remembers what it was asked.

    Attributes:
        requests: bodies of chat completions, those of batches included.
        online: how many of them came by themselves.
    """

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.online = 0
        self.reply = reply
        self.batches = DemoBatches(self._reply, lambda: 0.05)
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/chat/completions":
                    served.online += 1
                    return self.send(*served._reply(body))
                self.send_found(served.batches.post(self.path, body, self.headers["content-type"]))

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                self.send_found(served.batches.get(path, query))

            def do_DELETE(self) -> None:
                self.send_found(served.batches.delete(self.path))

            def send_found(self, found: Any) -> None:
                if isinstance(found, tuple):
                    return self.send(*found, {})
                self.send(404 if found is None else 200, found or {"error": {"message": "not here"}}, {})

            def send(self, status: int, body: Any, headers: dict[str, str]) -> None:
                data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else None
                data = json.dumps(body).encode() if data is None else data
                self.send_response(status)
                self.send_header("content-type", "text/html" if isinstance(body, str) else "application/json")
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def _reply(self, body: bytes) -> Reply:
        self.requests.append(json.loads(body))
        return self.reply(self.requests[-1], len(self.requests))


class LocalLimiter:
    """A rate limiter without its actor: `exchange` is what a worker's gate sends its reports through."""

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter, self.counts = limiter, Counter[str]()
        self.reports: list[Report] = []

    async def exchange(self, worker: str, report: Report, counts: Mapping[str, int], wanted: int) -> Grant:
        self.counts = Counter(counts)
        self.reports.append(report)
        return self.limiter.exchange(worker, report, wanted)


def write_pictures(folder: Path) -> Path:
    folder.mkdir()
    for number in range(NUM_PICTURES):
        Image.new("RGB", (8, 8), (number, 99, 7)).save(folder / f"{number:02d}.png")
    return folder


class Work:
    """A plan of a sample for each of some pictures, and the log of its answers.

    Args:
        shard: where the pictures are; None: a folder of new ones.
    """

    def __init__(self, root: Path, shard: AnyPath | None = None) -> None:
        self.root = root
        shard = shard or write_pictures(root / "pictures")
        index = indexed(root, [shard], PictureKey(FilterSettings()))
        settings = PlanSettings(tasks={"vqa": 1.0}, languages=["en"])
        self.plan: Plan = make_plan(index, settings, root, neighbours=None, num_workers=1)
        self.answers = root / "answers"
        self.answers.mkdir()

    def ask(
        self,
        base_url: str,
        *,
        key: str | None = None,
        budget: Mapping[str, Any] | None = None,
        form: str | None = None,
        limit: str | None = None,
        in_batches: bool = False,
        question: Any = None,
        owner: str | None = None,
        set_form: str | None = None,
        refuses_away: bool = False,
        **more: Any,
    ) -> tuple[Counter[str], Stop]:
        """Counts by status, and why it stopped (code 0: it did not).

        Args:
            budget: "price", and settings of `RateLimiter`.
            in_batches: also where none are to be made, so that those of an earlier run are taken up.
            form: known from an earlier run; `set_form` is the setting.
            more: settings of the server.
        """
        settings = {"model": "m", "concurrency": 4, "max_attempts": 2, "timeout_s": 5.0, "batch_poll_s": 0.02} | more
        server = ServerSettings(base_url=base_url, form=set_form, **settings)
        used = self.survey().used_by_worker
        limits = {name: setting for name, setting in (budget or {}).items() if name != "price"}
        max_in_flight = 4 * (server.calls_per_batch or 1) + num_with_server(self.root)
        self.limiter = RateLimiter(max_in_flight=max_in_flight, used=used, **limits)
        pictures = StoredPictures(self.plan.shards, ("",), AS_IT_IS, Path("no index"))
        asking = Asking(
            server,
            "teacher",
            question or Synthesis(pictures, num_negatives=1),
            self.plan,
            self.root,
            (budget or {}).get("price"),
            KnownForm(form, limit),
            any(usage.num_answered for usage in used.values()),
            in_batches or server.calls_per_batch is not None,
            owner,
            refuses_away,
        )
        local = LocalLimiter(self.limiter)

        async def run() -> Stop:
            worker = Worker(asking, local.exchange, api_key=key)
            return await worker.ask_file(0) or Stop(0, "")

        stop = asyncio.run(run())
        self.notes = local.reports[-1].notes if local.reports else ()
        return +local.counts, stop

    def survey(self) -> Survey:
        return Survey.of(self.answers, self.plan.num_files)

    @property
    def usage(self) -> Usage:
        return self.survey().usage

    @property
    def num_done(self) -> int:
        return int(self.survey().num_settled.sum())

    def entries(self) -> list[Entry | None]:
        """Of every planned sample; None where there is no answer yet."""
        entries = entries_of(sorted(self.answers.glob("*.answers")))
        return [entries.get(number) for number in range(len(self.plan))]

    def statuses(self) -> Counter[str | None]:
        return Counter(entry and entry.status for entry in self.entries())
