"""A second use of an MLLM, captions of pictures, in one class: what asks, logs, budgets and resumes needs no change."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mme5core.asking.answer_log import ANSWERED, REJECTED, Survey, entries_of, when_seen, with_sizes
from mme5core.asking.question import Question, Record, Retry, Unsuitable, Verdict, verdict_of
from mme5core.asking.rates import RateLimiter
from mme5core.asking.request import Request, sendable
from mme5core.asking.settings import ServerSettings
from mme5core.asking.worker import Asking, Worker
from mme5core.types import Rejected
from tests.core.asking.server import LocalLimiter, Reply, completion, write_pictures

NUM_FILES, PER_FILE = 3, 4
CANNOT = '"I cannot see pictures."'


@dataclass(frozen=True)
class Captions:
    """One sentence about a picture; an answer that was cut off is asked for again, an empty one refused."""

    language: str = "English"

    def request(self, record: Record) -> Request:
        return Request(
            "You describe pictures.",
            f"One sentence in {self.language}.",
            [sendable(Path(record["file"]).read_bytes())],
            {"type": "object", "properties": {"caption": {"type": "string"}}},
            'Answer {"caption": "..."}.',
            seed=0,
            schema_name="caption",
        )

    def verdict(self, answer: Mapping[str, Any], record: Record) -> Verdict:
        if answer["finish_reason"] == "length":
            return Retry("the sentence is cut off")
        if answer["text"] == CANNOT:
            return Unsuitable("the server cannot see")
        caption = json.loads(answer["text"])["caption"]
        return [(record["id"], caption)] if caption else Rejected(record["id"], "no_caption")


@dataclass(frozen=True)
class Pictures:
    """Records of the pictures of a folder, a few to a file."""

    files: Sequence[Path]

    @property
    def starts(self) -> np.ndarray:
        return np.arange(0, len(self.files) + 1, PER_FILE)

    def rows(self, file: int) -> list[Record]:
        chosen = self.files[PER_FILE * file : PER_FILE * (file + 1)]
        return [{"id": path.stem, "file": str(path)} for path in chosen]


def said(caption: str, finish_reason: str = "stop") -> Reply:
    return 200, completion(json.dumps({"caption": caption}), finish_reason), {}


class Captioning:
    """A job that asks for captions, and what its folder holds."""

    def __init__(self, root: Path) -> None:
        self.work, self.question = root / "work", Captions()
        (self.work / "answers").mkdir(parents=True)
        self.records = Pictures(sorted(write_pictures(root / "pictures").iterdir())[: NUM_FILES * PER_FILE])

    def ask(self, base_url: str, *, max_calls: int | None = None, **settings: Any) -> Counter[str]:
        server = ServerSettings(base_url=base_url, model="m", max_attempts=3, batch_poll_s=0.02, **settings)
        question: Question = self.question
        asking = Asking(server, "captioner", question, self.records, self.work, in_batches=bool(server.calls_per_batch))
        limiter = LocalLimiter(RateLimiter(max_in_flight=50, budget_calls=max_calls, used=self.survey().used_by_worker))

        async def run() -> None:
            worker = Worker(asking, limiter.exchange, api_key=None)
            await asyncio.gather(*(worker.ask_file(number) for number in range(NUM_FILES)))

        asyncio.run(run())
        return +limiter.counts

    def survey(self) -> Survey:
        return Survey.of(self.work / "answers", NUM_FILES)

    def entries(self) -> dict[int, Any]:
        return entries_of(sorted((self.work / "answers").iterdir()))

    def captions(self) -> dict[str, str]:
        """As a job would write them at its end."""
        rows: dict[str, str] = {}
        for number, entry in self.entries().items():
            if entry.status == ANSWERED:
                record = self.records.rows(number // PER_FILE)[number % PER_FILE]
                verdict = self.question.verdict(entry.answer, record)
                rows |= dict(verdict) if isinstance(verdict, list) else {}
        return rows


@pytest.fixture
def job(tmp_path: Path) -> Captioning:
    return Captioning(tmp_path)


@pytest.mark.parametrize("calls_per_batch", [None, 5])
def test_captions_are_asked_for_logged_and_become_rows(
    calls_per_batch: int | None, job: Captioning, serve: Any
) -> None:
    served = serve(lambda request, n: said(f"picture {n}"))
    assert job.ask(served.base_url, calls_per_batch=calls_per_batch) == {"kept": 12}
    assert len(job.captions()) == len(set(job.captions().values())) == 12 == len(served.requests)
    form = served.requests[-1]["response_format"]["json_schema"]
    assert form["name"] == "caption" and "caption" in form["schema"]["properties"]
    assert job.ask(served.base_url) == {} and len(served.requests) == 12  # nothing is paid for twice


def test_a_run_goes_on_where_its_budget_ended(job: Captioning, serve: Any) -> None:
    served = serve(lambda request, n: said("a cat"))
    assert job.ask(served.base_url, max_calls=5) == {"kept": 5, "pending": 7}
    assert job.ask(served.base_url) == {"kept": 7} and len(served.requests) == 12


def test_an_answer_that_says_nothing_is_asked_for_again_at_once_and_paid_for_each_time(
    job: Captioning, serve: Any
) -> None:
    served = serve(lambda request, n: said("a c", "length") if n <= 2 else said("a cat"))
    assert job.ask(served.base_url, concurrency=1) == {"kept": 12} and len(served.requests) == 14
    usage = job.survey().usage
    assert (usage.calls, usage.prompt_tokens) == (14, 1400) and set(job.captions().values()) == {"a cat"}


@pytest.mark.parametrize("calls_per_batch", [None, 5])
def test_a_record_whose_answers_never_say_anything_is_left_to_the_next_run(
    calls_per_batch: int | None, job: Captioning, serve: Any
) -> None:
    served = serve(lambda request, n: said("a c", "length"))
    assert job.ask(served.base_url, calls_per_batch=calls_per_batch) == {"pending": 12}
    assert not job.entries() and job.survey().usage.calls == len(served.requests)
    served.reply = lambda request, n: said("a cat")
    assert job.ask(served.base_url) == {"kept": 12}


def test_refusals_and_pictures_that_cannot_be_shown_keep_their_reason(job: Captioning, serve: Any) -> None:
    Path(job.records.rows(0)[1]["file"]).write_bytes(b"no picture")
    served = serve(lambda request, n: said("" if n == 3 else "a cat"))
    assert job.ask(served.base_url) == {"kept": 10, "refused": 2} and len(job.captions()) == 10
    (bad,) = [entry for entry in job.entries().values() if entry.status == REJECTED]
    assert bad.number == 1 and bad.answer["reason"] == "not_an_image"


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"caption": ', '{"capt": "a"}', "[" * 100_000])
def test_an_answer_on_which_the_verdict_fails_refuses_its_record_and_is_kept(
    text: str, job: Captioning, serve: Any
) -> None:
    served = serve(lambda request, n: (200, completion(text), {}) if n == 3 else said("a cat"))
    assert job.ask(served.base_url) == {"kept": 11, "refused": 1} and len(served.requests) == 12
    (odd,) = [entry for entry in job.entries().values() if entry.answer["text"] == text]
    verdict = verdict_of(job.question, odd.answer, {"id": "x"})
    assert isinstance(verdict, Rejected) and (verdict.id, verdict.reason) == ("x", "unreadable_answer")
    assert job.ask(served.base_url) == {} and job.survey().usage.calls == 12


def test_a_server_that_cannot_answer_such_questions_is_asked_no_more(job: Captioning, serve: Any) -> None:
    served = serve(lambda request, n: (200, completion(CANNOT), {}))
    assert job.ask(served.base_url, concurrency=1) == {"pending": 12}
    assert len(served.requests) <= 3 and not job.entries()  # the forms of one answer
    served.reply = lambda request, n: said("a cat")
    assert job.ask(served.base_url) == {"kept": 12}


def test_one_such_answer_among_good_ones_is_of_its_record_alone(job: Captioning, serve: Any) -> None:
    served = serve(lambda request, n: (200, completion(CANNOT), {}) if n == 5 else said("a cat"))
    assert job.ask(served.base_url, concurrency=1) == {"kept": 11, "refused": 1} and len(served.requests) == 12


def test_messages_call_the_server_by_the_role_that_the_job_gives_it(job: Captioning, serve: Any) -> None:
    served = serve(lambda request, n: (400, {"error": {"message": "too small"}}, {}) if n == 5 else said("a cat"))
    assert job.ask(served.base_url, concurrency=1) == {"kept": 11, "refused": 1}
    (bad,) = [entry for entry in job.entries().values() if entry.status == REJECTED]
    assert bad.answer == {"reason": "captioner_rejected", "detail": "400: Error code: 400 - too small"}


def test_the_cache_of_one_job_serves_another_with_the_same_question(
    job: Captioning, serve: Any, tmp_path: Path
) -> None:
    served = serve(lambda request, n: said("a cat"))
    job.ask(served.base_url)
    cache = (job.work / "answers").rename(tmp_path / "cache")
    (job.work / "answers").mkdir()
    assert job.ask(served.base_url, cache=str(cache)) == {"kept": 12} and len(served.requests) == 12
    assert job.survey().usage.calls == 0 and len(job.captions()) == 12


def test_a_task_waits_until_its_node_sees_what_the_driver_sees_of_the_log(
    job: Captioning, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: said("a cat"))
    job.ask(served.base_url)
    (first, *_) = sorted((job.work / "answers").glob("*.answers"))
    whole, sizes = first.read_bytes(), with_sizes([first])
    first.write_bytes(whole[:50])  # as another node may see it for a while
    slept: list[float] = []

    def arrive(seconds: float) -> None:
        slept.append(seconds)
        first.write_bytes(whole)

    monkeypatch.setattr("mme5core.durable.time.sleep", arrive)
    assert len(entries_of(when_seen(sizes))) == 4 and len(slept) == 1
