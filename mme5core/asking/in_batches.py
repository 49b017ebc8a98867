"""Asks through the server's Batch API: a file of requests out, their answers into the log."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mme5core.asking.answer import NOT_OF_THE_PROTOCOL, answer_of, error_in, is_completion
from mme5core.asking.batch_api import (
    CLOCKS_DIFFER_S,
    MAX_FILE_BYTES,
    BatchClient,
    BatchState,
    Replies,
    Reply,
    batch_line,
)
from mme5core.asking.batch_record import BatchRecord
from mme5core.asking.calls_in_flight import CallsInFlight
from mme5core.asking.client import ERROR_WITHOUT_STATUS, Client
from mme5core.asking.error_status import ErrorReply
from mme5core.asking.failures import (
    BudgetSpent,
    NotThere,
    OutOfMoney,
    RequestFailed,
    ServerMisconfigured,
    ServerUnavailable,
    wrong_key,
)
from mme5core.asking.gate import SharedGate
from mme5core.asking.log_file import LogFile
from mme5core.asking.one_by_one import OneByOne, Preparer
from mme5core.asking.patience import Patience
from mme5core.asking.recorder import AGAIN, PENDING, Recorder
from mme5core.asking.token_usage import Tokens, tokens_of
from mme5core.errors import BAD_INPUT, RESUMABLE

LEAST_WAIT_S, LONGEST_PAUSE_S = 1.0, 600.0
FAILED_POLLS_IN_A_ROW = 3
POLLS_FOR_A_FILE = 5  # that is not there yet, though its batch is over


class InBatches:
    """Asks in batches; first takes up what an earlier run, or a worker that died, has sent.

    Where it is not known yet in which form the server answers, one record is asked about by itself.

    Args:
        folder: of the batches' records.
        calls_per_batch: None: only take up batches of earlier runs, and ask the rest call by call.
        base_url: of the server, which must be the one that has the batches.
        poll_s: between two looks at a batch.
    """

    def __init__(
        self,
        batches: BatchClient,
        client: Client,
        gate: SharedGate,
        preparer: Preparer,
        recorder: Recorder,
        patience: Patience,
        single: OneByOne,
        slots: asyncio.Semaphore,
        folder: Path,
        *,
        base_url: str,
        calls_per_batch: int | None,
        poll_s: float,
    ) -> None:
        self._batches, self._client, self._gate, self._single = batches, client, gate, single
        self._preparer, self._recorder, self._patience = preparer, recorder, patience
        self._slots, self._folder, self._base_url = slots, folder, base_url
        self._calls_per_batch, self._poll_s = calls_per_batch, poll_s
        self._learning_form = asyncio.Lock()
        self._sending = asyncio.Lock()  # the client holds a whole file in memory
        self._num_with_server, self._has_asked_one = 0, False

    async def work_through(self, file: LogFile) -> None:
        """Ask about every record of a file that has no answer."""
        records = [r for r in BatchRecord.of_file(self._folder, file.number) if await self._is_with_server(r)]
        taken = {number for record in records for number in record.numbers}
        missing = [number for number in file.missing() if number not in taken]
        if self._calls_per_batch is None:
            asked = [self._single.ask(file, number) for number in missing]
        else:
            missing = await self._learn_form(file, missing)
            starts = range(0, len(missing), self._calls_per_batch)
            asked = [self._in_batches(file, missing[start : start + self._calls_per_batch]) for start in starts]
        await asyncio.gather(*(self._take_up(file, record) for record in records), *asked)

    async def _is_with_server(self, record: BatchRecord) -> bool:
        """Whether the server has the batch; its name tells where a run was killed before it heard so."""
        if record.base_url != self._base_url:
            self._patience.halt(
                BAD_INPUT,
                f"batches of an earlier run are with {record.base_url}: run with that address until they are done, "
                f"or remove {self._folder} and pay for them again",
            )
            return False
        if record.batch_id is None:
            try:
                record.batch_id = await self._batches.find(record.name, since_s=record.made_s - CLOCKS_DIFFER_S)
            except (ServerMisconfigured, ServerUnavailable) as error:
                self._patience.halt(RESUMABLE, f"{error} at {self._base_url}; run again")
                return False
            if record.batch_id is None:
                record.remove(self._folder)
                return False
            record.save(self._folder)
        return True

    async def _learn_form(self, file: LogFile, missing: list[int]) -> list[int]:
        """Ask about single records until the server has answered one; returns those that are left."""
        async with self._learning_form:
            while missing and self._is_untested and self._patience.stop is None:
                await self._single.ask(file, missing[0])
                missing, self._has_asked_one = missing[1:], True
        return missing

    @property
    def _is_untested(self) -> bool:
        """Whether one more record is asked about by itself: to test key and model, and until a form is shown."""
        return self._client.form is None and (self._client.is_form_sought or not self._has_asked_one)

    @contextlib.contextmanager
    def _halting(self, file: LogFile, number: int) -> Iterator[None]:
        """What a failure means for the requests after it."""
        try:
            yield
        except OSError as error:
            self._patience.halt_on_file(error, file.folder)
        except RequestFailed as error:
            self._recorder.failed(file, number, error, is_form_known=self._client.form is not None)

    async def _take_up(self, file: LogFile, record: BatchRecord) -> None:
        """Wait for a batch of an earlier run."""
        self._gate.inside(len(record.numbers))
        calls = CallsInFlight(self._gate, len(record.numbers), were_sent=True)
        with self._halting(file, record.numbers[0]), calls:
            await self._wait_for(file, record, calls)

    async def _in_batches(self, file: LogFile, numbers: list[int]) -> None:
        """Ask about records in as many batches as budget, file size and the server's queue make of them."""
        most, num_refused = len(numbers), 0
        async with self._slots:
            goes_on = True
            while numbers and goes_on and self._patience.stop is None:
                goes_on = False
                with self._halting(file, numbers[0]):
                    num_granted = await self._gate.enter_many(min(most, len(numbers)))
                    if not num_granted:
                        raise BudgetSpent
                    with CallsInFlight(self._gate, num_granted, were_sent=False) as calls:
                        record, num_written = await self._submit(file, numbers[:num_granted], calls)
                        numbers = numbers[num_written:]
                        problem = None if record is None else await self._wait_for(file, record, calls)
                    if record is not None and problem is not None:
                        numbers, num_refused = record.numbers + numbers, num_refused + 1
                        most = await self._make_room(len(record.numbers), num_refused, problem)
                    goes_on = True
        self._recorder.counts[PENDING] += len(numbers)

    async def _make_room(self, num_calls: int, num_refused: int, problem: str) -> int:
        """Wait because the account's queue is full; returns how many calls the next batch may have.

        Where it is not our own batches that fill it, the batch itself may be too large for it.
        """
        if not self._num_with_server:
            if num_calls == 1:
                role = self._patience.role
                self._patience.halt(RESUMABLE, f"the {role}'s queue for batches is full ({problem}); run again later")
            num_calls = max(1, num_calls // 2)
        await asyncio.sleep(min(LONGEST_PAUSE_S, self._poll_s * 2 ** min(num_refused, 10)))
        return num_calls

    async def _submit(
        self, file: LogFile, numbers: Sequence[int], calls: CallsInFlight
    ) -> tuple[BatchRecord | None, int]:
        """Send the first of some records, as many as fit into a file; returns the batch, and how many are settled."""
        form = self._client.form_asked
        async with self._sending:
            with tempfile.NamedTemporaryFile(suffix=".jsonl") as lines:
                sent, num_written = await self._write_lines(file, numbers, form, lines)
                calls.give_back(len(numbers) - len(sent))
                if not sent:
                    return None, num_written
                record = BatchRecord(file.number, sent, self._base_url, form)
                record.save(self._folder)
                try:
                    record.batch_id = await self._batches.submit(Path(lines.name), record.name)
                except OutOfMoney:
                    record.remove(self._folder)  # refused: the server has no such batch
                    raise
                except ServerMisconfigured as error:
                    record.remove(self._folder)  # as above
                    section = self._patience.role
                    hint = f": set {section}.calls_per_batch=null" if isinstance(error, NotThere) else ""
                    raise ServerMisconfigured(f"{error}{hint}") from None
        calls.were_sent = True
        record.save(self._folder)
        return record, num_written

    async def _write_lines(self, file: LogFile, numbers: Sequence[int], form: str, lines: Any) -> tuple[list[int], int]:
        """The records that were written as requests, and how many are settled, those of the cache included."""
        sent: list[int] = []
        for num_written, number in enumerate(numbers):
            prepared = await self._preparer.prepare(file, number)
            if isinstance(prepared, str):
                self._recorder.counts[prepared] += 1
                continue
            request = prepared.request
            # What the log wants beside the answer travels in the line's name, since the request is gone by then.
            name = (
                f"{number}-{prepared.key}-{request.estimated_prompt_tokens(self._client.model)}-"
                f"{request.seed}-{request.prompt_sha256()}"
            )
            line = batch_line(name, self._client.body(request, form))
            if sent and lines.tell() + len(line) > MAX_FILE_BYTES:
                lines.flush()
                return sent, num_written
            lines.write(line)
            sent.append(number)
        lines.flush()
        return sent, len(numbers)

    async def _wait_for(self, file: LogFile, record: BatchRecord, calls: CallsInFlight) -> str | None:
        """Wait until a batch is over and its answers are in the log; returns why it must be sent again, if it must.

        Where the job ends at once (a wrong key, say) it is left to the next run.

        Raises:
            ServerMisconfigured: the server refuses it as a whole, or does not know it.
            ServerUnavailable: nobody answers any more.
        """
        self._num_with_server += 1
        try:
            return await self._result(file, record, calls)
        except NotThere:
            where = record.path(self._folder)
            raise ServerMisconfigured(
                f"the {self._patience.role} does not know batch {record.batch_id} (any more): remove {where} to pay "
                "for it again"
            ) from None
        finally:
            self._num_with_server -= 1

    async def _result(self, file: LogFile, record: BatchRecord, calls: CallsInFlight) -> str | None:
        assert record.batch_id is not None
        num_failed = num_incomplete = 0
        while self._patience.stop is None or self._patience.stop.code == RESUMABLE:
            try:
                state = await self._batches.state(record.batch_id)
                if state.status == "failed" and not state.output_file:
                    calls.were_sent = False
                    record.remove(self._folder)
                    await self._batches.forget(state)
                    if state.is_queue_full:
                        return state.problem
                    if state.is_unpaid:
                        raise OutOfMoney(self._patience.role, 400, words=state.problem)
                    raise ServerMisconfigured(f"the {self._patience.role} refuses a batch ({state.problem})")
                if state.is_over:
                    answers = await self._batches.replies(state)
                    num_incomplete += bool(answers.missing)
                    if not answers.missing or num_incomplete == POLLS_FOR_A_FILE:
                        await self._end(file, record, state, answers, calls)
                        return None
                elif not state.is_known:
                    self._gate.note(f"batch {state.id} has the status {state.status!r}, which is not known; it waits")
                num_failed = 0
            except OutOfMoney:
                raise
            except NotThere:
                num_failed += 1
                if num_failed == FAILED_POLLS_IN_A_ROW:
                    raise
            except ServerUnavailable as error:
                num_failed += 1
                if num_failed == FAILED_POLLS_IN_A_ROW:
                    self._patience.halt(RESUMABLE, f"{error} at {self._base_url}; run again when it is there")
                    raise
            await asyncio.sleep(self._poll_s)
        return None

    async def _end(
        self, file: LogFile, record: BatchRecord, state: BatchState, answers: Replies, calls: CallsInFlight
    ) -> None:
        """Take the answers that are there; the record of a batch stays while its file of answers is missing."""
        self._take(file, record, answers.replies, calls)
        await file.sync()  # before the record goes, with which they would be fetched again
        if answers.lost_file:
            self._gate.note(
                f"the file {answers.lost_file} of batch {state.id} is not there: its samples are pending; run again "
                f"later, or remove {record.path(self._folder)} to pay for them again"
            )
            return
        record.remove(self._folder)
        await self._batches.forget(state)

    def _take(self, file: LogFile, record: BatchRecord, replies: Sequence[Reply], calls: CallsInFlight) -> None:
        """Write the answers of a batch; a run that was killed here has written some of them already."""
        calls.were_sent = False  # what is open at the end: expired, cancelled, or written before
        waiting = set(record.numbers) & set(file.missing())
        for reply in replies:
            name = reply.custom_id.partition("-")[0]
            number = int(name) if name.isascii() and name.isdigit() else -1
            if number in waiting and reply.custom_id.count("-") >= 2:
                waiting.remove(number)
                status = self.write_reply(file, record.mode, reply, calls)
                self._recorder.counts[PENDING if status == AGAIN else status] += 1
        self._recorder.counts[PENDING] += len(waiting)

    def write_reply(self, file: LogFile, form: str, reply: Reply, calls: CallsInFlight) -> str:
        """Write one reply of a batch; returns what its record came to."""
        name, key, prompt_tokens, *seed_and_hash = reply.custom_id.split("-")
        number = int(name)
        if not reply.status_code:
            return PENDING
        tokens, answer = tokens_of(reply.body), None
        is_error = reply.status_code != 200 or error_in(reply.body) is not None
        if not is_error:
            with contextlib.suppress(*NOT_OF_THE_PROTOCOL):
                answer = answer_of(reply.body, self._client.model, form=form).with_tokens(lambda: int(prompt_tokens))
                tokens = answer.tokens
        calls.end(tokens.prompt, tokens.completion)
        if is_error:
            return self._failed(file, number, key, reply, tokens)
        if answer is None:
            note = self._recorder.unreadable if is_completion(reply.body) else self._recorder.unanswered
            return note(file, number, "an answer that is not of the protocol", 1, tokens, key=key)
        if not seed_and_hash:  # a batch of version 0.1
            request = self._preparer.request(file, number)
            seed_and_hash = [str(request.seed), request.prompt_sha256()]
        seed, prompt_sha256 = seed_and_hash
        return self._recorder.answered(file, number, key, answer, prompt_sha256=prompt_sha256, seed=int(seed))

    def _failed(self, file: LogFile, number: int, key: str, reply: Reply, tokens: Tokens) -> str:
        """Write the error that one request of a batch came to; the server has answered before, or there were none."""
        error = ErrorReply.of_line(reply.status_code, reply.body)
        if reply.status_code == 200:
            error = ErrorReply.inside(reply.body, None)
        status = ERROR_WITHOUT_STATUS if error.status is None else error.status
        detail = f"{status}: {error.words}"
        role = self._patience.role
        if error.is_unpaid:
            self._patience.failed(OutOfMoney(role, status, words=error.words), is_form_known=True)
        elif status == 401:
            self._patience.failed(wrong_key(role, status, has_key=True, words=error.words), is_form_known=True)
        elif not error.may_pass(has_answer=True):
            return self._recorder.rejected(file, number, key, detail, 1, tokens)
        return self._recorder.unanswered(file, number, detail, 1, tokens)
