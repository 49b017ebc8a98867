"""The actor that asks the teacher through its Batch API: a file of requests out, their answers into the log."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mme5core.synthesis.batches import CLOCKS_DIFFER_S, MAX_FILE_BYTES, BatchClient, NotThere, Reply, batch_line
from mme5core.synthesis.prompts import build_prompt, prompt_hash
from mme5core.synthesis.teacher import (
    SCHEMA,
    BudgetSpent,
    OutOfMoney,
    TeacherMisconfigured,
    TeacherUnavailable,
    answer_of,
    estimated_prompt_tokens,
    is_unpaid,
    may_pass,
    with_tokens,
)
from rayjobs import cli
from rayjobs.answers import FAILED, Entry
from rayjobs.config import ConfigError
from rayjobs.gate import SharedGate
from rayjobs.output import write_json
from rayjobs.planning import planned
from rayjobs.synth_worker import PENDING, Asking, AskTeacher, PlanFile

LEAST_WAIT_S, LONGEST_PAUSE_S = 1.0, 600.0
FAILED_POLLS_IN_A_ROW = 3


@dataclass(slots=True)
class Record:
    """A batch that is with the server, as a later run finds it; `batch_id` is None until the server has told it."""

    plan_file: int
    numbers: list[int]
    base_url: str
    mode: str
    batch_id: str | None = None
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    made_s: float = field(default_factory=time.time)

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        write_json(self.path(folder), asdict(self))

    def remove(self, folder: Path) -> None:
        self.path(folder).unlink(missing_ok=True)

    def path(self, folder: Path) -> Path:
        return folder / f"{self.plan_file:06d}-{self.name}.json"

    @classmethod
    def of_file(cls, folder: Path, plan_file: int) -> Iterator[Record]:
        for file in sorted(folder.glob(f"{plan_file:06d}-*.json")):
            yield cls(**json.loads(file.read_text()))


def batch_folder(work: Path) -> Path:
    return work / "batches"


def num_with_server(work: Path) -> int:
    """Calls in batches that an earlier run has sent and that are not taken up yet.

    Raises:
        ConfigError: a record cannot be read.
    """
    num_calls = 0
    for file in batch_folder(work).glob("*.json"):
        try:
            num_calls += len(json.loads(file.read_text())["numbers"])
        except ValueError:
            raise ConfigError(f"{file}: cannot be read; remove it to pay for its batch again") from None
    return num_calls


class _Calls:
    """Calls that are in flight together: whatever happens to them, they leave the gate, each once.

    Attributes:
        were_sent: whether those that are open at the end have been paid for.
    """

    def __init__(self, gate: SharedGate, num_calls: int, *, were_sent: bool) -> None:
        self._gate, self._num_open, self.were_sent = gate, num_calls, were_sent

    def end(self, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """One has ended, and was paid for."""
        self._num_open -= 1
        self._gate.leave(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def give_back(self, num_calls: int) -> None:
        """So many will not be made."""
        self._num_open -= num_calls
        for _ in range(num_calls):
            self._gate.leave(was_called=False)

    def __enter__(self) -> _Calls:
        return self

    def __exit__(self, *_: object) -> None:
        while self._num_open:
            self._num_open -= 1
            self._gate.leave(was_called=self.were_sent)


class AskInBatches(AskTeacher):
    """Asks as `AskTeacher`, in batches; takes up first what an earlier run, or a worker that died, has sent.

    Where it is not known yet in which form the server answers, one sample is asked for by itself.
    """

    def __init__(self, asking: Asking, governor: Any) -> None:
        teacher = asking.teacher
        self._batch_size, self._poll_s = teacher["batch_size"], teacher["batch_poll_s"]
        super().__init__(asking, governor, least_wait_s=LEAST_WAIT_S)
        self._client = BatchClient(
            teacher["base_url"],
            api_key=asking.api_key,
            timeout_s=teacher["timeout_s"],
            max_attempts=teacher["max_attempts"],
        )
        self._folder = batch_folder(asking.answers.parent)
        self._finding_form = asyncio.Lock()
        self._sending = asyncio.Lock()  # the client holds a whole file in memory
        self._num_out = 0

    async def _work_through(self, file: PlanFile) -> None:
        records = [record for record in Record.of_file(self._folder, file.number) if await self._is_there(record)]
        with_server = {number for record in records for number in record.numbers}
        missing = [number for number in file.missing() if number not in with_server]
        if self._batch_size is None:
            asked = [self._one(file, number) for number in missing]
        else:
            missing = await self._find_form(file, missing)
            starts = range(0, len(missing), self._batch_size)
            asked = [self._in_batches(file, missing[start : start + self._batch_size]) for start in starts]
        await asyncio.gather(*(self._take_up(file, record) for record in records), *asked)

    async def _is_there(self, record: Record) -> bool:
        """Whether the server has the batch; where the run was killed before it had heard so, the name tells."""
        if record.base_url != self._base_url:
            self._halt(
                cli.BAD_INPUT,
                f"batches of an earlier run are with {record.base_url}: run with that address until they are done, "
                f"or remove {self._folder} and pay for them again",
            )
            return False
        if record.batch_id is None:
            try:
                record.batch_id = await self._client.find(record.name, since_s=record.made_s - CLOCKS_DIFFER_S)
            except (TeacherMisconfigured, TeacherUnavailable) as error:
                self._halt(cli.RESUMABLE, f"{error} at {self._base_url}; run again")
                return False
            if record.batch_id is None:
                record.remove(self._folder)
                return False
            record.save(self._folder)
        return True

    async def _find_form(self, file: PlanFile, missing: list[int]) -> list[int]:
        """Ask for single samples until the server has answered one; those that are left."""
        async with self._finding_form:
            while missing and self._teacher.mode is None and self._stop is None:
                await self._one(file, missing[0])
                missing = missing[1:]
        return missing

    async def _take_up(self, file: PlanFile, record: Record) -> None:
        """Wait for a batch of an earlier run."""
        self._gate.inside(len(record.numbers))
        with self._stopping(file, record.numbers[0]), _Calls(self._gate, len(record.numbers), were_sent=True) as calls:
            await self._wait_for(file, record, calls)

    async def _in_batches(self, file: PlanFile, numbers: list[int]) -> None:
        """Ask for samples in as many batches as budget, size and the server's queue make of them."""
        most, num_refused = len(numbers), 0
        async with self._slots:
            goes_on = True
            while numbers and goes_on and self._stop is None:
                goes_on = False
                with self._stopping(file, numbers[0]):
                    num_granted = await self._gate.enter_many(min(most, len(numbers)))
                    if not num_granted:
                        raise BudgetSpent(0)
                    with _Calls(self._gate, num_granted, were_sent=False) as calls:
                        record, num_written = await self._submit(file, numbers[:num_granted], calls)
                        numbers = numbers[num_written:]
                        problem = None if record is None else await self._wait_for(file, record, calls)
                    if record is not None and problem is not None:
                        numbers, num_refused = record.numbers + numbers, num_refused + 1
                        most = await self._make_room(len(record.numbers), num_refused, problem)
                    goes_on = True
        self._gate.counts[PENDING] += len(numbers)

    async def _make_room(self, num_calls: int, num_refused: int, problem: str) -> int:
        """Wait because the account's queue is full; how many calls the next batch may have.

        Where it is not our own batches that fill it, the batch itself may be too large for it.
        """
        if not self._num_out:
            if num_calls == 1:
                self._halt(cli.RESUMABLE, f"the teacher's queue for batches is full ({problem}); run again later")
            num_calls = max(1, num_calls // 2)
        await asyncio.sleep(min(LONGEST_PAUSE_S, self._poll_s * 2 ** min(num_refused, 10)))
        return num_calls

    async def _submit(self, file: PlanFile, numbers: Sequence[int], calls: _Calls) -> tuple[Record | None, int]:
        """Send the first of some samples, as many as fit into a file; the batch, and how many were dealt with."""
        mode = self._teacher.mode or SCHEMA
        async with self._sending:
            with tempfile.NamedTemporaryFile(suffix=".jsonl") as lines:
                sent, num_written = await self._write_lines(file, numbers, mode, lines)
                calls.give_back(len(numbers) - len(sent))
                if not sent:
                    return None, num_written
                record = Record(file.number, sent, self._base_url, mode)
                record.save(self._folder)
                try:
                    record.batch_id = await self._client.submit(Path(lines.name), record.name)
                except OutOfMoney:
                    record.remove(self._folder)  # refused: the server has no such batch
                    raise
                except TeacherMisconfigured as error:
                    record.remove(self._folder)  # as above
                    hint = ": set teacher.batch_size=null" if isinstance(error, NotThere) else ""
                    raise TeacherMisconfigured(f"{error}{hint}") from None
        calls.were_sent = True
        record.save(self._folder)
        return record, num_written

    async def _write_lines(
        self, file: PlanFile, numbers: Sequence[int], mode: str, lines: Any
    ) -> tuple[list[int], int]:
        """The samples that were written as requests, and how many were dealt with, those of the cache included."""
        sent: list[int] = []
        for num_written, number in enumerate(numbers):
            prepared = await self._prepared(file, number)
            if isinstance(prepared, str):
                self._gate.counts[prepared] += 1
                continue
            _, request, key = prepared
            name = f"{number}-{key}-{estimated_prompt_tokens(request, self._teacher.model)}"
            line = batch_line(name, self._teacher.body(request, mode))
            if sent and lines.tell() + len(line) > MAX_FILE_BYTES:
                lines.flush()
                return sent, num_written
            lines.write(line)
            sent.append(number)
            await asyncio.sleep(0)  # other batches go on meanwhile
        lines.flush()
        return sent, len(numbers)

    async def _wait_for(self, file: PlanFile, record: Record, calls: _Calls) -> str | None:
        """Until a batch is over and its answers are in the log; why it is to be sent again, if it is.

        Where the job ends at once (a wrong key, say) it is left to the next run.

        Raises:
            TeacherMisconfigured: the server refuses it as a whole, or does not know it.
            TeacherUnavailable: nobody answers any more.
        """
        self._num_out += 1
        try:
            return await self._result(file, record, calls)
        except NotThere:
            where = record.path(self._folder)
            raise TeacherMisconfigured(
                f"the teacher does not know batch {record.batch_id} (any more): remove {where} to pay for it again"
            ) from None
        finally:
            self._num_out -= 1

    async def _result(self, file: PlanFile, record: Record, calls: _Calls) -> str | None:
        assert record.batch_id is not None
        num_failed = 0
        while self._stop is None or self._stop.code == cli.RESUMABLE:
            try:
                state = await self._client.state(record.batch_id)
                if state.status == "failed":
                    calls.were_sent = False
                    record.remove(self._folder)
                    await self._client.forget(state)
                    if state.is_queue_full:
                        return state.problem
                    if state.is_unpaid:
                        raise OutOfMoney(400)
                    raise TeacherMisconfigured(f"the teacher refuses a batch ({state.problem})")
                if state.is_over:
                    self._take(file, record, await self._client.replies(state), calls)
                    await file.sync()  # before that is gone which would bring them again
                    record.remove(self._folder)
                    await self._client.forget(state)
                    return None
                num_failed = 0
            except OutOfMoney:
                raise
            except TeacherUnavailable as error:
                num_failed += 1
                if num_failed == FAILED_POLLS_IN_A_ROW:
                    self._halt(cli.RESUMABLE, f"{error} at {self._base_url}; run again when it is there")
                    raise
            await asyncio.sleep(self._poll_s)
        return None

    def _take(self, file: PlanFile, record: Record, replies: Sequence[Reply], calls: _Calls) -> None:
        """Write what came of a batch; a run that was killed here has written a part already."""
        calls.were_sent = False  # what is open at the end: expired, cancelled, or written before
        waiting = set(record.numbers) & set(file.missing())
        for reply in replies:
            number, key, prompt_tokens = reply.custom_id.split("-")
            if int(number) in waiting:
                waiting.remove(int(number))
                status = self._write(file, int(number), key, int(prompt_tokens), record.mode, reply, calls)
                self._gate.counts[status] += 1
        self._gate.counts[PENDING] += len(waiting)

    def _write(
        self, file: PlanFile, number: int, key: str, prompt_tokens: int, mode: str, reply: Reply, calls: _Calls
    ) -> str:
        plan = planned(file.record(number))
        if not reply.status_code:
            return PENDING
        if reply.status_code == 200:
            try:
                answer = answer_of(reply.body, self._teacher.model, mode=mode)
            except (LookupError, TypeError, ValueError, AttributeError):
                return self._failed(file, number, "an answer that is not of the protocol", calls)
            answer = with_tokens(answer, lambda: prompt_tokens)
            calls.end(answer.prompt_tokens, answer.completion_tokens)
            system, user = build_prompt(plan, num_negatives=self._asking.rules.num_negatives)
            return self._keep(file, number, key, answer, plan, prompt_hash(system, user))
        found = reply.body.get("error")
        problem = found if isinstance(found, dict) else {"message": found}
        detail = f"{reply.status_code}: {str(problem.get('message'))[:200]}"
        if is_unpaid(reply.status_code, problem.get("code")):
            self._halt_unpaid(OutOfMoney(reply.status_code))
            return self._failed(file, number, detail, calls)
        if may_pass(reply.status_code):
            return self._failed(file, number, detail, calls)
        calls.end()
        return self._reject(file, number, key, detail, 1)

    def _failed(self, file: PlanFile, number: int, detail: str, calls: _Calls) -> str:
        calls.end()
        value = {"reason": "teacher_unavailable", "detail": detail}
        self._note(file, Entry(number, FAILED, 1, 0, 0, 0.0, "-", value))
        return PENDING
