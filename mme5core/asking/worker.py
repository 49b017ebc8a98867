"""A worker that asks about files of records: the parts that ask, write and decide when to stop, put together."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from mme5core.asking.answer_cache import AnswerCache
from mme5core.asking.batch_api import BatchClient
from mme5core.asking.batch_record import batch_folder
from mme5core.asking.client import Client
from mme5core.asking.gate import Exchange, SharedGate
from mme5core.asking.in_batches import LEAST_WAIT_S, InBatches
from mme5core.asking.known_form import KnownForm, remember_form
from mme5core.asking.log_file import OpenLogFiles
from mme5core.asking.one_by_one import OneByOne, Preparer
from mme5core.asking.patience import Patience, Stop
from mme5core.asking.pricing import Price
from mme5core.asking.question import Question, Records
from mme5core.asking.recorder import Recorder
from mme5core.asking.settings import ServerSettings
from mme5core.errors import FAILED, WorkFailed
from mme5core.ownership import check_owner


@dataclass(frozen=True, slots=True)
class Asking:
    """What every worker of a run is given; holds no secret, since it travels through the cluster.

    Args:
        server: where and how to ask; its `model` names the answers.
        role: what messages call the server ("teacher", "judge"): the name of its section in the recipe.
        work: the job's work folder; the log is in its folder `answers`.
        price: None: not known.
        known: what an earlier run has learnt of the server.
        has_answer: whether the server has answered an earlier run.
        in_batches: ask through the Batch API, or take up batches of an earlier run.
        refuses_away: refuse records whose picture is away, rather than leave them to the next run.
        owner: token of the run that owns the job's folder (`ownership`): workers stop where another run has taken it.
    """

    server: ServerSettings
    role: str
    question: Question
    records: Records
    work: Path
    price: Price | None = None
    known: KnownForm = field(default_factory=KnownForm)
    has_answer: bool = False
    in_batches: bool = False
    owner: str | None = None
    refuses_away: bool = False

    @property
    def log(self) -> Path:
        return self.work / "answers"


class Worker:
    """
    Args:
        exchange: talks to the rate limiter that all workers share.
        api_key: of the server; None: it wants none.
    """

    def __init__(self, asking: Asking, exchange: Exchange, *, api_key: str | None) -> None:
        server, name = asking.server, uuid.uuid4().hex
        least_wait_s = LEAST_WAIT_S if asking.in_batches else 0.0
        self._asking = asking
        self._gate = SharedGate(exchange, name, price=asking.price, least_wait_s=least_wait_s)
        self._patience = Patience(
            role=asking.role,
            base_url=server.base_url,
            concurrency=server.concurrency,
            has_answer=asking.has_answer,
            close=self._gate.close,
        )
        self._files = OpenLogFiles(asking.records, asking.log, name, self._halt_on_file, self._check_owner)
        self._recorder = Recorder(
            asking.question,
            asking.price,
            self._patience,
            self._files,
            self._gate.counts,
            self._gate.note,
            refuses_away=asking.refuses_away,
        )
        self._client = Client(
            server.base_url,
            server.model,
            role=asking.role,
            api_key=api_key,
            sampling=server.sampling,
            timeout_s=server.timeout_s,
            max_attempts=server.max_attempts,
            gate=self._gate,
            form=asking.known.form,
            limit=asking.known.limit,
            fixed_form=server.form,
            has_answer=asking.has_answer,
            on_note=self._gate.note,
        )
        self._strategy = self._make_strategy(api_key)

    def _make_strategy(self, api_key: str | None) -> OneByOne | InBatches:
        server, slots = self._asking.server, asyncio.Semaphore(self._asking.server.concurrency)
        preparer = Preparer(self._asking.question, self._client, self._open_cache(), self._recorder)
        single = OneByOne(
            self._client,
            preparer,
            self._recorder,
            self._patience,
            slots,
            max_asked_again=server.max_attempts,
            on_form=self._remember_form,
        )
        if not self._asking.in_batches:
            return single
        batches = BatchClient(
            server.base_url,
            role=self._asking.role,
            api_key=api_key,
            timeout_s=server.timeout_s,
            max_attempts=server.max_attempts,
        )
        return InBatches(
            batches,
            self._client,
            self._gate,
            preparer,
            self._recorder,
            self._patience,
            single,
            slots,
            batch_folder(self._asking.work),
            base_url=server.base_url,
            calls_per_batch=server.calls_per_batch,
            poll_s=server.batch_poll_s,
        )

    async def ask_file(self, number: int) -> Stop | None:
        """Ask about every record of a file that has no answer; returns why the worker has stopped, if it has.

        Several files may be open at once: the last calls of one go beside the first of the next.
        """
        self._check_owner()
        if self._patience.stop is None:
            try:
                with self._files.opened(number) as file:
                    await self._strategy.work_through(file)
            except OSError as error:
                self._halt_on_file(error)
        if not self._files:  # any file may be the last
            self._recorder.settle_rejections()
            await self._client.close()
        await self._gate.report()
        return self._patience.stop

    def take_written(self) -> dict[str, int]:
        """Names and bytes of the files of the log that this worker has closed since the last call."""
        written, self._files.written = self._files.written, {}
        return written

    def _open_cache(self) -> AnswerCache | None:
        if self._asking.server.cache is None:
            return None
        own = {file.name for file in self._asking.log.glob("*.answers")}
        return AnswerCache(Path(self._asking.server.cache), without=own)

    def _check_owner(self) -> None:
        if self._asking.owner is not None and self._patience.stop is None:
            try:
                check_owner(self._asking.work, self._asking.owner)
            except WorkFailed as error:
                self._patience.halt(FAILED, str(error))

    def _halt_on_file(self, error: OSError) -> None:
        self._patience.halt_on_file(error, self._asking.log)

    def _remember_form(self, form: str) -> None:
        server = self._asking.server
        remember_form(self._asking.work, server.base_url, server.model, form, self._client.limit)
