"""The actor that asks the teacher: planned samples in, answers into the log as they come, counts out."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mme5core.readers import ReadOptions, read_picture
from mme5core.storage import Address, locate
from mme5core.synthesis.answer import parse_answer
from mme5core.synthesis.plan import PlannedSample
from mme5core.synthesis.pricing import Price
from mme5core.synthesis.prompts import prompt_hash
from mme5core.synthesis.requests import build_request
from mme5core.synthesis.teacher import (
    Answer,
    BudgetSpent,
    Request,
    Teacher,
    TeacherMisconfigured,
    TeacherRejected,
    TeacherUnavailable,
)
from mme5core.types import Rejected
from rayjobs import cli
from rayjobs.answers import ANSWERED, FAILED, REJECTED, AnswerCache, AnswerWriter, Entry
from rayjobs.gate import SharedGate
from rayjobs.planning import Plan, planned

UNREACHABLE_IN_A_ROW = 3  # then the worker leaves the rest for the next run, instead of waiting through every row
REJECTED_IN_A_ROW = 16  # before any answer: then it is the request that is wrong, and not the pictures
TELL_EVERY_S = 1.0
KEPT, REFUSED, PENDING = "kept", "refused", "pending"


@dataclass(frozen=True, slots=True)
class Rules:
    """When an answer is a sample."""

    num_negatives: int
    min_self_evaluation: float | None


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a plan, read again where they lie."""

    shards: tuple[str, ...]
    labels: tuple[str, ...]
    options: ReadOptions

    def read(self, place: Mapping[str, Any]) -> bytes:
        """
        Raises:
            OSError: naming the shard.
        """
        shard = locate(self.shards[place["shard"]])
        options = replace(self.options, label=self.labels[place["shard"]])
        return read_picture(shard, place["id"], place["offset"], place["num_bytes"], options)

    def are_remote(self) -> bool:
        return isinstance(locate(self.shards[0]), Address)


def answer_value(answer: Answer, request: Request, price: Price | None) -> dict[str, Any]:
    """An answer as the log keeps it."""
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "model": answer.model,
        "mode": answer.mode,
        "prompt_sha256": prompt_hash(request.system, request.user),
        "seed": request.seed,
        "usd": None if price is None else price.of(answer.prompt_tokens, answer.completion_tokens),
    }


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the asking ended before every planned sample had its answer."""

    code: int
    reason: str


class AskTeacher:
    """Asks for the planned samples of a file that have no answer, many at a time.

    Args:
        teacher: arguments of `Teacher`, and `concurrency`: calls in flight.
        answers: the folder of the log.
        governor: the actor of `gate.start_governor`.
    """

    def __init__(
        self,
        teacher: dict[str, Any],
        plan: Plan,
        pictures: Pictures,
        rules: Rules,
        price: Price | None,
        answers: str,
        cache: str | None,
        governor: Any,
        api_key: str | None,
    ) -> None:
        self._settings = dict(teacher)
        self._concurrency = self._settings.pop("concurrency")
        self._plan, self._pictures, self._rules, self._price = plan, pictures, rules, price
        self._governor, self._api_key = governor, api_key
        self._where = answers
        self._log = AnswerWriter(Path(answers))
        self._cache = None if cache is None else AnswerCache(Path(cache))
        self._remote = pictures.are_remote()
        self._teacher: Teacher | None = None
        self._slots: asyncio.Semaphore | None = None
        self._num_unreachable = 0
        self._has_answer = False
        self._held: list[Entry] = []  # rejections, until it is known whether the server answers anything
        self._stop: Stop | None = None

    async def __call__(self, batch: pa.Table) -> AsyncIterator[dict[str, list[Any]]]:
        """Counts by status, as answers come."""
        if self._teacher is None:
            # Made here: they belong to the actor's event loop, which does not run yet in __init__.
            self._slots = asyncio.Semaphore(self._concurrency)
            self._teacher = Teacher(**self._settings, api_key=self._api_key, gate=SharedGate(self._governor))
        for item in batch.to_pylist():
            records = self._plan.rows(item["file"])
            start = int(self._plan.starts[item["file"]])
            tasks = {asyncio.ensure_future(self._one(start + n, records[n])) for n in item["missing"]}
            while tasks:
                done, tasks = await asyncio.wait(tasks, timeout=TELL_EVERY_S)
                yield self._told(Counter(task.result() for task in done))

    def _told(self, counts: Counter[str]) -> dict[str, list[Any]]:
        stop = self._stop or Stop(0, "")
        statuses = list(counts) or [""]
        return {
            "status": statuses,
            "count": [counts[status] for status in statuses],
            "stop_code": [stop.code] * len(statuses),
            "stop_reason": [stop.reason] * len(statuses),
        }

    async def _one(self, number: int, record: dict[str, Any]) -> str:
        """Ask for one sample; its status, as far as it is settled here."""
        assert self._slots is not None
        async with self._slots:
            if self._stop is not None:
                return PENDING
            try:
                return await self._ask(number, record)
            except OSError as error:
                self._stop = Stop(cli.FAILED, f"{error.filename or self._where}: {error.strerror or error}")
            except (BudgetSpent, TeacherUnavailable) as error:
                self._note(number, FAILED, error.calls, {"reason": "teacher_unavailable", "detail": str(error)})
                self._settle(error)
            except TeacherMisconfigured as error:
                self._stop = Stop(cli.BAD_INPUT, str(error))
            return PENDING

    async def _ask(self, number: int, record: dict[str, Any]) -> str:
        assert self._teacher is not None
        plan = planned(record)
        images = {place["id"]: await self._read(place) for place in record["pictures"]}
        request = build_request(plan, images, num_negatives=self._rules.num_negatives)
        key = request.key(self._teacher.model, self._teacher.settings)
        known = None if self._cache is None else self._cache.get(key)
        if known is not None:
            self._log.write(replace(known, number=number, calls=0, prompt_tokens=0, completion_tokens=0))
            return self._judge(known.value, plan, images)
        try:
            answer = await self._teacher.ask(request)
        except TeacherRejected as error:
            value = {"reason": "teacher_rejected", "detail": str(error)}
            entry = Entry(number, REJECTED, error.calls, 0, 0, key, value)
            if self._has_answer:
                self._log.write(entry)
                return REFUSED
            self._hold(entry)
            return PENDING
        self._num_unreachable = 0
        value = answer_value(answer, request, self._price)
        tokens = answer.prompt_tokens, answer.completion_tokens
        self._log.write(Entry(number, ANSWERED, answer.calls, *tokens, key, value))
        self._has_answer = True
        while self._held:
            self._log.write(self._held.pop())
        return self._judge(value, plan, images)

    async def _read(self, place: dict[str, Any]) -> bytes:
        if self._remote:
            return await asyncio.to_thread(self._pictures.read, place)
        return self._pictures.read(place)

    def _judge(self, value: dict[str, Any], plan: PlannedSample, images: Mapping[str, bytes]) -> str:
        found = parse_answer(
            value["text"],
            value["finish_reason"],
            plan,
            images,
            num_negatives=self._rules.num_negatives,
            min_self_evaluation=self._rules.min_self_evaluation,
        )
        return REFUSED if isinstance(found, Rejected) else KEPT

    def _hold(self, entry: Entry) -> None:
        """Keep back a rejection; many of them, and not one answer, are the server's or the recipe's fault."""
        self._held.append(entry)
        if len(self._held) >= REJECTED_IN_A_ROW:
            detail = self._held[0].value["detail"]
            self._stop = self._stop or Stop(cli.BAD_INPUT, f"the teacher rejects every request ({detail})")
            for held in self._held:
                self._note(held.number, FAILED, held.calls, held.value)
            self._held.clear()

    def _settle(self, error: Exception) -> None:
        if isinstance(error, BudgetSpent):
            reason = "the budget is spent; raise budget.calls or budget.usd to go on"
            self._stop = self._stop or Stop(cli.RESUMABLE, reason)
            return
        self._num_unreachable = self._num_unreachable + 1 if getattr(error, "unreachable", False) else 0
        if self._num_unreachable >= UNREACHABLE_IN_A_ROW:
            where = self._settings["base_url"]
            self._stop = self._stop or Stop(cli.RESUMABLE, f"{error} at {where}; run again when it is there")

    def _note(self, number: int, status: str, calls: int, value: dict[str, Any]) -> None:
        """What was paid for without an answer."""
        if calls:
            self._log.write(Entry(number, status, calls, 0, 0, "-", value))


def api_key() -> str | None:
    return os.environ.get("OPENAI_API_KEY")
