"""The actor that asks the teacher: planned samples in, answers into the log as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mme5core.images import BadImage
from mme5core.readers import ReadOptions, read_picture
from mme5core.storage import Address, locate
from mme5core.synthesis.answer import Parsed, parse_answer
from mme5core.synthesis.plan import PlannedSample
from mme5core.synthesis.pricing import Price
from mme5core.synthesis.prompts import prompt_hash
from mme5core.synthesis.requests import build_request
from mme5core.synthesis.teacher import (
    Answer,
    BudgetSpent,
    OutOfMoney,
    Request,
    Teacher,
    TeacherMisconfigured,
    TeacherRejected,
    TeacherUnavailable,
)
from mme5core.types import ImageRef, Rejected
from rayjobs import cli
from rayjobs.answers import ANSWERED, FAILED, REJECTED, AnswerCache, AnswerWriter, Entry, settled
from rayjobs.gate import SharedGate
from rayjobs.output import sync, write_json
from rayjobs.planning import Plan, planned

# After so many without an answer between them the worker leaves the rest to the next run, instead of waiting through
# every row: nobody there, or no answer ever; else as many as there are calls in flight.
UNAVAILABLE_IN_A_ROW = 3
# Then it is the request that is wrong, or the account, and not the pictures: before any answer, and after one.
REJECTED_IN_A_ROW, REJECTED_AFTER_AN_ANSWER = 16, 64
# Answers of which none can be kept, before a worker's first that can, and after one: then it is the model or a setting,
# and each is paid for. Of a recipe that keeps one in twenty one worker in 700 begins so.
USELESS_IN_A_ROW, USELESS_AFTER_A_SAMPLE = 128, 512
SYNC_EVERY_S = 1.0
NOT_THE_CLIENTS = ("concurrency", "batch_size", "batch_poll_s")
FORM_FILE = "teacher.json"
BUDGET_SPENT = "the budget is spent; raise budget.calls or budget.usd to go on"
KEPT, REFUSED, PENDING = "kept", "refused", "pending"


@dataclass(frozen=True, slots=True)
class Rules:
    """When an answer is a sample."""

    num_negatives: int
    min_self_evaluation: float | None

    def judge(self, value: Mapping[str, Any], plan: PlannedSample, images: Mapping[str, ImageRef]) -> Parsed | Rejected:
        """What an answer of the log (`answer_value`) comes to."""
        return parse_answer(
            value["text"],
            value["finish_reason"],
            plan,
            images,
            num_negatives=self.num_negatives,
            min_self_evaluation=self.min_self_evaluation,
        )


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


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the asking ended before every planned sample had its answer."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Asking:
    """What every worker of a run is given.

    Args:
        teacher: arguments of `Teacher`, and those of its section that are not the client's.
        answers: the folder of the log.
        mode, limit: the form in which the server answered an earlier run, and its name of the limit of tokens.
        has_answer: whether it has answered anything at all.
    """

    teacher: dict[str, Any]
    plan: Plan
    pictures: Pictures
    rules: Rules
    price: Price | None
    answers: Path
    cache: str | None
    api_key: str | None = field(repr=False)
    mode: str | None = None
    limit: str | None = None
    has_answer: bool = False


class PlanFile:
    """A file of the plan while a worker asks for its samples, and the log that takes their answers."""

    def __init__(self, asking: Asking, number: int, worker: str) -> None:
        self.number = number
        self._answers = asking.answers
        self._start = int(asking.plan.starts[number])
        self._records = asking.plan.rows(number)
        self._log = AnswerWriter(asking.answers, number, worker)
        self._syncing = asyncio.Lock()
        self._not_synced: OSError | None = None

    def __enter__(self) -> PlanFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._log.close()

    def missing(self) -> list[int]:
        """The samples without an answer, as the log says now: another worker may have died over this file."""
        have = settled(self._answers, self.number)
        return [n for n in range(self._start, self._start + len(self._records)) if n not in have]

    def record(self, number: int) -> dict[str, Any]:
        return self._records[number - self._start]

    def write(self, entry: Entry) -> None:
        self._log.write(entry)

    async def sync(self) -> None:
        """Until what was written so far outlives this machine, as far as that is in our hands."""
        async with self._syncing:  # one that has begun before may not have ended
            if self._not_synced is not None:  # the system tells it once
                raise self._not_synced
            if (descriptor := self._log.unsynced()) is not None:
                try:
                    await asyncio.to_thread(sync, descriptor)
                except OSError as error:
                    self._not_synced = error
                    raise


class AskTeacher:
    """Asks for the planned samples of a file that have no answer, many at a time.

    Args:
        governor: the actor of `gate.start_governor`.
    """

    def __init__(self, asking: Asking, governor: Any, *, least_wait_s: float = 0.0) -> None:
        self._asking = asking
        settings = {name: value for name, value in asking.teacher.items() if name not in NOT_THE_CLIENTS}
        self._base_url = settings["base_url"]
        self._worker = uuid.uuid4().hex
        own = {file.name for file in asking.answers.glob("*.answers")}
        self._cache = None if asking.cache is None else AnswerCache(Path(asking.cache), without=own)
        self._is_remote = asking.pictures.are_remote()
        self._gate = SharedGate(governor, self._worker, price=asking.price, least_wait_s=least_wait_s)
        self._teacher = Teacher(
            **settings, api_key=asking.api_key, gate=self._gate, mode=asking.mode, limit=asking.limit
        )
        self._slots = asyncio.Semaphore(asking.teacher["concurrency"])
        self._known_mode = asking.mode
        self._open: set[PlanFile] = set()
        self._syncing: asyncio.Task[None] | None = None
        self._num_unavailable = 0
        self._has_answer = asking.has_answer
        self._has_sample = False
        # Refused answers since the last that was a sample, by reason.
        self._useless: Counter[str] = Counter()
        # Rejections since the last answer.
        self._held: list[tuple[PlanFile, Entry]] = []
        self._rejects_all = False
        self._stop: Stop | None = None

    async def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        """Whether to stop, and why; the counts go to the governor, and the answers into the log."""
        for number in batch["file"].to_pylist():
            if self._stop is not None:
                break
            try:
                with self._opened(number) as file:
                    await self._work_through(file)
            except OSError as error:
                self._stop_on(error)
        if not self._open:  # nobody says which file is the last
            self._write_rejections()
            await self._teacher.close()
        await self._gate.tell()
        stop = self._stop or Stop(0, "")
        return {"stop_code": [stop.code], "stop_reason": [stop.reason]}

    @contextlib.contextmanager
    def _opened(self, number: int) -> Iterator[PlanFile]:
        with PlanFile(self._asking, number, self._worker) as file:
            self._open.add(file)
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.get_running_loop().create_task(self._sync_while_open())
            try:
                yield file
            finally:
                self._open.remove(file)

    async def _sync_while_open(self) -> None:
        """A machine that is lost takes the answers of a second with it, not those of a file of the plan."""
        while self._open:
            await asyncio.sleep(SYNC_EVERY_S)
            for file in list(self._open):
                try:
                    await file.sync()
                except OSError as error:
                    self._stop_on(error)

    async def _work_through(self, file: PlanFile) -> None:
        await asyncio.gather(*(self._one(file, number) for number in file.missing()))

    async def _one(self, file: PlanFile, number: int) -> None:
        """Ask for one sample, and count what it came to."""
        status = PENDING
        async with self._slots:
            if self._stop is None:
                with self._stopping(file, number):
                    status = await self._ask(file, number)
        self._gate.counts[status] += 1

    @contextlib.contextmanager
    def _stopping(self, file: PlanFile, number: int) -> Iterator[None]:
        """What a failed call means for those after it."""
        try:
            yield
        except OSError as error:
            self._stop_on(error)
        except (BudgetSpent, TeacherUnavailable, TeacherMisconfigured) as error:
            value = {"reason": "teacher_unavailable", "detail": str(error)}
            self._note(file, Entry(number, FAILED, error.calls, 0, 0, 0.0, "-", value))
            if isinstance(error, BudgetSpent):
                self._halt(cli.RESUMABLE, BUDGET_SPENT)
            elif isinstance(error, TeacherMisconfigured):
                self._halt(cli.BAD_INPUT, f"{error}: teacher.base_url={self._base_url}")
            elif isinstance(error, OutOfMoney):
                self._halt_unpaid(error)
            else:
                self._count_unavailable(error)

    def _halt(self, code: int, reason: str) -> None:
        """Ask for nothing more; the first reason stays."""
        self._stop = self._stop or Stop(code, reason)
        self._gate.close()

    def _halt_unpaid(self, error: OutOfMoney) -> None:
        self._halt(cli.RESUMABLE, f"{error} at {self._base_url}; pay in, then run again")

    def _count_unavailable(self, error: TeacherUnavailable) -> None:
        self._num_unavailable += 1
        is_hopeless = error.unreachable or self._teacher.mode is None
        most = UNAVAILABLE_IN_A_ROW if is_hopeless else max(UNAVAILABLE_IN_A_ROW, self._asking.teacher["concurrency"])
        if self._num_unavailable >= most:
            self._halt(cli.RESUMABLE, f"{error} at {self._base_url}; run again when it is there")

    async def _ask(self, file: PlanFile, number: int) -> str:
        prepared = await self._prepared(file, number)
        if isinstance(prepared, str):
            return prepared
        plan, request, key = prepared
        try:
            answer = await self._teacher.ask(request)
        except TeacherRejected as error:
            return self._reject(file, number, key, str(error), error.calls)
        status = self._keep(file, number, key, answer, plan, prompt_hash(request.system, request.user))
        if self._known_mode != self._teacher.mode:
            self._known_mode = self._teacher.mode
            remember_form(self._asking.answers.parent, self._base_url, self._teacher, answer.mode)
        return status

    async def _prepared(self, file: PlanFile, number: int) -> tuple[PlannedSample, Request, str] | str:
        """What to ask, under which key; or the status of a sample that need not be asked for."""
        try:
            plan, request = await self._request(file, number)
        except BadImage as error:  # of which the header had been good
            value = {"reason": error.reason, "detail": str(error)}
            file.write(Entry(number, REJECTED, 0, 0, 0, 0.0, "-", value))
            return REFUSED
        key = request.key(self._teacher.model, self._teacher.settings)
        known = None if self._cache is None else self._cache.get(key)
        if known is None:
            return plan, request, key
        usd = None if self._asking.price is None else 0.0
        value = known.value | {"usd": usd}
        file.write(Entry(number, ANSWERED, 0, 0, 0, 0.0, key, value))
        if self._refused(value, plan) is not None:
            return REFUSED
        self._count_useless(None)
        return KEPT

    async def _request(self, file: PlanFile, number: int) -> tuple[PlannedSample, Request]:
        record = file.record(number)
        plan = planned(record)
        images = {place["id"]: await self._read(place) for place in record["pictures"]}
        return plan, build_request(plan, images, num_negatives=self._asking.rules.num_negatives)

    async def _read(self, place: dict[str, Any]) -> bytes:
        if self._is_remote:
            return await asyncio.to_thread(self._asking.pictures.read, place)
        return self._asking.pictures.read(place)

    def _keep(
        self, file: PlanFile, number: int, key: str, answer: Answer, plan: PlannedSample, prompt_sha256: str
    ) -> str:
        """Write an answer; its status."""
        value = answer_value(answer, prompt_sha256, plan.seed, self._asking.price)
        tokens = answer.prompt_tokens, answer.completion_tokens
        file.write(Entry(number, ANSWERED, answer.calls, *tokens, value["usd"] or 0.0, key, value))
        self._num_unavailable = 0
        self._has_answer = True
        self._write_rejections()
        refused = self._refused(value, plan)
        self._count_useless(refused)
        return KEPT if refused is None else REFUSED

    def _refused(self, value: dict[str, Any], plan: PlannedSample) -> Rejected | None:
        # The pictures do not matter here: their names stand for them.
        images = {image_id: image_id for image_id in plan.image_ids}
        found = self._asking.rules.judge(value, plan, images)
        return found if isinstance(found, Rejected) else None

    def _count_useless(self, refused: Rejected | None) -> None:
        """Stop where answer upon answer is refused: nobody wants to pay for all of them."""
        if refused is None:
            self._has_sample = True
            self._useless.clear()
            return
        self._useless[refused.reason] += 1
        most = USELESS_AFTER_A_SAMPLE if self._has_sample else USELESS_IN_A_ROW
        if self._useless.total() >= most:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self._useless.most_common())
            line = (
                f"of {most} answers in a row none could be kept ({reasons}; the last: {refused.detail.splitlines()[0]})"
            )
            self._halt(cli.BAD_INPUT, f"{line}: is it the right model, is teacher.max_tokens enough?")

    def _reject(self, file: PlanFile, number: int, key: str, detail: str, calls: int) -> str:
        """Keep a rejection back until the next answer: many without one are the server's or the recipe's fault."""
        value = {"reason": "teacher_rejected", "detail": detail}
        self._held.append((file, Entry(number, REJECTED, calls, 0, 0, 0.0, key, value)))
        if len(self._held) >= (REJECTED_AFTER_AN_ANSWER if self._has_answer else REJECTED_IN_A_ROW):
            self._write_rejections(all_are=True)
        return PENDING

    def _write_rejections(self, *, all_are: bool = False) -> None:
        """Write what was kept back: refused, or, where the server rejects all, left to the next run."""
        if not self._held:
            return
        self._rejects_all |= all_are or not self._has_answer
        if self._rejects_all:
            self._halt(cli.BAD_INPUT, f"the teacher rejects every request ({self._held[0][1].value['detail']})")
        held, self._held = self._held, []
        for file, entry in held:
            if self._rejects_all:
                self._note(file, replace(entry, status=FAILED))
                continue
            file.write(entry)
            self._gate.counts.update({REFUSED: 1, PENDING: -1})
        for file in {file for file, _ in held} - self._open:
            file.close()  # it was, and these lines opened it again

    def _stop_on(self, error: OSError) -> None:
        where = error.filename or self._asking.answers
        self._halt(cli.FAILED, f"{where}: {error.strerror or error}")

    def _note(self, file: PlanFile, entry: Entry) -> None:
        """What was paid for without an answer."""
        if entry.calls:
            file.write(entry)


def answer_value(answer: Answer, prompt_sha256: str, seed: int, price: Price | None) -> dict[str, Any]:
    """An answer as the log keeps it."""
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "model": answer.model,
        "mode": answer.mode,
        "prompt_sha256": prompt_sha256,
        "seed": seed,
        "usd": None if price is None else price.of(answer.prompt_tokens, answer.completion_tokens),
    }


def remember_form(work: Path, base_url: str, teacher: Teacher, mode: str) -> None:
    """Tell later runs in which form this server answers, and by which name it takes the limit of tokens."""
    told = {"base_url": base_url, "model": teacher.model, "mode": mode, "limit": teacher.limit}
    write_json(work / FORM_FILE, told)


def remembered_form(work: Path, base_url: str, model: str) -> tuple[str | None, str | None]:
    """(form, name of the limit) in which this server answered an earlier run, if that is known."""
    try:
        found = json.loads((work / FORM_FILE).read_text())
    except FileNotFoundError:
        return None, None
    is_it = (found["base_url"], found["model"]) == (base_url, model)
    return (found["mode"], found.get("limit")) if is_it else (None, None)


def api_key() -> str | None:
    return os.environ.get("OPENAI_API_KEY")
