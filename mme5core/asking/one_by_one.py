"""Asks call by call, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from mme5core.asking.answer_cache import AnswerCache
from mme5core.asking.client import Client
from mme5core.asking.failures import AnswerUnreadable, RequestFailed, RequestRejected
from mme5core.asking.log_file import LogFile
from mme5core.asking.patience import Patience
from mme5core.asking.question import Question
from mme5core.asking.recorder import AGAIN, PENDING, Recorder
from mme5core.asking.request import Request
from mme5core.images import BadImage


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that must be sent, and its key."""

    request: Request
    key: str


class Preparer:
    """From a record to its request, unless a cached answer or a bad picture settles it."""

    def __init__(self, question: Question, client: Client, cache: AnswerCache | None, recorder: Recorder) -> None:
        self._question, self._client, self._cache, self._recorder = question, client, cache, recorder

    def request(self, file: LogFile, number: int) -> Request:
        """The request for a record.

        Raises:
            BadImage: a picture cannot be shown.
            OSError: a picture's file cannot be read.
        """
        return self._question.request(file.record(number))

    async def prepare(self, file: LogFile, number: int) -> Prepared | str:
        """The request; or what the record has come to without one.

        Raises:
            OSError: a picture's file cannot be read.
        """
        try:
            request = await asyncio.to_thread(self.request, file, number)
        except BadImage as error:
            return self._recorder.unusable(file, number, error)
        key = request.key(self._client.model, self._client.sampling)
        known = None if self._cache is None else self._cache.get(key)
        status = None if known is None else self._recorder.cached(file, number, key, known)
        return Prepared(request, key) if status is None else status


class OneByOne:
    """
    Args:
        slots: as many as calls may be in flight.
        max_asked_again: how often a record is asked about whose answers say nothing of it.
        on_form: called with the server's form of answer once it is known.
    """

    def __init__(
        self,
        client: Client,
        preparer: Preparer,
        recorder: Recorder,
        patience: Patience,
        slots: asyncio.Semaphore,
        *,
        max_asked_again: int,
        on_form: Callable[[str], None],
    ) -> None:
        self._client, self._preparer, self._recorder, self._patience = client, preparer, recorder, patience
        self._slots, self._max_asked_again, self._on_form = slots, max_asked_again, on_form
        self._known_form = client.form

    async def work_through(self, file: LogFile) -> None:
        """Ask about every record of a file that has no answer."""
        await asyncio.gather(*(self.ask(file, number) for number in file.missing()))

    async def ask(self, file: LogFile, number: int) -> None:
        """Ask about one record, and count what it came to."""
        status = PENDING
        async with self._slots:
            if self._patience.stop is None:
                try:
                    status = await self._ask(file, number)
                except OSError as error:
                    self._patience.halt_on_file(error, file.folder)
                except RequestFailed as error:
                    self._recorder.failed(file, number, error, is_form_known=self._client.form is not None)
        self._recorder.counts[status] += 1

    async def _ask(self, file: LogFile, number: int) -> str:
        prepared = await self._preparer.prepare(file, number)
        if isinstance(prepared, str):
            return prepared
        request, key = prepared.request, prepared.key
        for _ in range(self._max_asked_again):
            try:
                answer = await self._client.ask(request)
            except RequestRejected as error:
                return self._recorder.rejected(file, number, key, str(error), error.calls, error.tokens)
            except AnswerUnreadable as error:
                status = self._recorder.unreadable(file, number, error.detail, error.calls, error.tokens, key=key)
                if status == AGAIN:
                    continue
                return status
            status = self._recorder.answered(
                file, number, key, answer, prompt_sha256=request.prompt_sha256(), seed=request.seed
            )
            if self._known_form != self._client.form:
                self._known_form = self._client.form
                self._on_form(self._client.form or answer.form)
            if status != AGAIN:
                return status
        return PENDING
