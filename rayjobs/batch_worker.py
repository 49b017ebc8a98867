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

from mme5core.synthesis.batches import CLOCKS_DIFFER_S, MAX_FILE_BYTES, BatchClient, BatchState, Reply, batch_line
from mme5core.synthesis.prompts import build_prompt, prompt_hash
from mme5core.synthesis.teacher import (
    SCHEMA,
    BudgetSpent,
    TeacherMisconfigured,
    TeacherRejected,
    TeacherUnavailable,
    answer_of,
    may_pass,
)
from rayjobs import cli
from rayjobs.answers import FAILED, REJECTED, Entry
from rayjobs.output import write_json
from rayjobs.planning import planned
from rayjobs.synth_worker import PENDING, Asking, AskTeacher, PlanFile, Stop, rejected_value

LEAST_WAIT_S = 1.0
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
        write_json(self._path(folder), asdict(self))

    def remove(self, folder: Path) -> None:
        self._path(folder).unlink(missing_ok=True)

    def _path(self, folder: Path) -> Path:
        return folder / f"{self.plan_file:06d}-{self.name}.json"

    @classmethod
    def of_file(cls, folder: Path, plan_file: int) -> Iterator[Record]:
        for file in sorted(folder.glob(f"{plan_file:06d}-*.json")):
            yield cls(**json.loads(file.read_text()))


def batch_folder(work: Path) -> Path:
    return work / "batches"


def has_batches(work: Path) -> bool:
    """Whether batches of an earlier run are with the server still."""
    return any(batch_folder(work).glob("*.json"))


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
            self._stop = Stop(
                cli.BAD_INPUT,
                f"batches of an earlier run are with {record.base_url}: run with that address until they are done, "
                f"or remove {self._folder} and pay for them again",
            )
            return False
        if record.batch_id is None:
            try:
                record.batch_id = await self._client.find(record.name, since_s=record.made_s - CLOCKS_DIFFER_S)
            except (TeacherMisconfigured, TeacherUnavailable) as error:
                self._stop = self._stop or Stop(cli.RESUMABLE, f"{error} at {self._base_url}; run again")
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
        with self._stopping(file, record.numbers[0]):
            await self._wait_for(file, record)

    async def _in_batches(self, file: PlanFile, numbers: list[int]) -> None:
        """Ask for samples in as many batches as budget and size make of them."""
        async with self._slots:
            goes_on = True
            while numbers and goes_on and self._stop is None:
                goes_on = False
                with self._stopping(file, numbers[0]):
                    num_granted = await self._gate.enter_many(len(numbers))
                    if not num_granted:
                        raise BudgetSpent(0)
                    record, num_written = await self._submit(file, numbers[:num_granted])
                    numbers = numbers[num_written:]
                    if record is not None and not await self._wait_for(file, record):
                        numbers = record.numbers + numbers
                    goes_on = True
        self._gate.counts[PENDING] += len(numbers)

    async def _submit(self, file: PlanFile, numbers: Sequence[int]) -> tuple[Record | None, int]:
        """Send the first of some samples, as many as fit into a file; the batch, and how many were dealt with."""
        mode = self._teacher.mode or SCHEMA
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as lines:
            sent, num_written = await self._write_lines(file, numbers, mode, lines)
            for _ in range(len(numbers) - len(sent)):
                self._gate.leave(was_called=False)
            if not sent:
                return None, num_written
            record = Record(file.number, sent, self._base_url, mode)
            record.save(self._folder)
            try:
                record.batch_id = await self._client.submit(Path(lines.name), record.name)
            except (TeacherMisconfigured, TeacherUnavailable) as error:
                for _ in sent:
                    self._gate.leave(was_called=False)
                if isinstance(error, TeacherMisconfigured):
                    record.remove(self._folder)  # refused: the server has no such batch
                raise
            record.save(self._folder)
        return record, num_written

    async def _write_lines(
        self, file: PlanFile, numbers: Sequence[int], mode: str, lines: Any
    ) -> tuple[list[int], int]:
        """The samples that were written as requests, and how many were dealt with, those of the cache included."""
        sent: list[int] = []
        for num_written, number in enumerate(numbers):
            plan, request = await self._request(file, number)
            key = request.key(self._teacher.model, self._teacher.settings)
            if (status := self._from_cache(file, number, key, plan)) is not None:
                self._gate.counts[status] += 1
                continue
            line = batch_line(f"{number}-{key}", request.body(self._teacher.model, self._teacher.settings, mode))
            if sent and lines.tell() + len(line) > MAX_FILE_BYTES:
                lines.flush()
                return sent, num_written
            lines.write(line)
            sent.append(number)
            await asyncio.sleep(0)  # other batches go on meanwhile
        lines.flush()
        return sent, len(numbers)

    async def _wait_for(self, file: PlanFile, record: Record) -> bool:
        """Until a batch is over and its answers are in the log; False if it is to be sent again.

        Where the job ends at once (a wrong key, say) it is left to the next run.

        Raises:
            TeacherMisconfigured: the server refuses it as a whole.
            TeacherUnavailable: nobody answers any more.
        """
        assert record.batch_id is not None
        num_failed = 0
        while True:
            if self._stop is not None and self._stop.code != cli.RESUMABLE:
                return True
            try:
                state = await self._client.state(record.batch_id)
                num_failed = 0
                if state.is_over:
                    break
            except TeacherUnavailable:
                num_failed += 1
                if num_failed == FAILED_POLLS_IN_A_ROW:
                    self._num_unreachable = FAILED_POLLS_IN_A_ROW
                    raise
            await asyncio.sleep(self._poll_s)
        if state.status == "failed":
            for _ in record.numbers:
                self._gate.leave(was_called=False)
            record.remove(self._folder)
            if not state.is_queue_full:
                raise TeacherMisconfigured(f"the teacher refuses a batch ({state.problem})")
            await asyncio.sleep(self._poll_s)
            return False
        await self._take(file, record, state)
        return True

    async def _take(self, file: PlanFile, record: Record, state: BatchState) -> None:
        """Write what came of a batch; a run that was killed here has written a part already."""
        waiting = set(record.numbers) & set(file.missing())
        num_open = len(record.numbers)
        async for reply in self._client.replies(state):
            number, _, key = reply.custom_id.partition("-")
            if int(number) in waiting:
                waiting.remove(int(number))
                num_open -= 1
                self._gate.counts[self._write(file, int(number), key, record.mode, reply)] += 1
        for _ in range(num_open):  # expired, cancelled, or written before
            self._gate.leave(was_called=False)
        self._gate.counts[PENDING] += len(waiting)
        record.remove(self._folder)

    def _write(self, file: PlanFile, number: int, key: str, mode: str, reply: Reply) -> str:
        plan = planned(file.record(number))
        answer = None
        if reply.status_code == 200 and reply.body.get("choices"):
            answer = answer_of(reply.body, self._teacher.model, mode=mode)
        if answer is not None:
            self._gate.leave(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
            system, user = build_prompt(plan, num_negatives=self._asking.rules.num_negatives)
            return self._keep(file, number, key, answer, plan, prompt_hash(system, user))
        self._gate.leave(was_called=bool(reply.status_code))
        message = f"{reply.status_code}: {str((reply.body.get('error') or {}).get('message', ''))[:200]}"
        if reply.status_code == 200 or may_pass(reply.status_code) or not reply.status_code:
            value = {"reason": "teacher_unavailable", "detail": message}
            self._note(file, Entry(number, FAILED, int(bool(reply.status_code)), 0, 0, "-", value))
            return PENDING
        rejected = TeacherRejected(message, 1)
        return self._reject(file, Entry(number, REJECTED, 1, 0, 0, key, rejected_value(rejected)))
