"""The client of an OpenAI-compatible MLLM: one request, its answer, and retries of what may pass."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import aiohttp
import openai

from mme5core.asking.answer import NOT_OF_THE_PROTOCOL, Answer, answer_of, error_in, is_completion
from mme5core.asking.answer_form import AnswerForm
from mme5core.asking.error_status import ErrorReply
from mme5core.asking.failures import (
    AnswerUnreadable,
    BudgetSpent,
    OutOfMoney,
    RequestFailed,
    RequestRejected,
    ServerMisconfigured,
    ServerUnavailable,
    wrong_key,
)
from mme5core.asking.few_tokens import TokenWatch
from mme5core.asking.permits import Gate, OpenGate
from mme5core.asking.request import FORMS, MAX_TOKENS, SCHEMA, Request, Sampling
from mme5core.asking.server_words import body_of, server_words, without_key
from mme5core.asking.token_usage import Tokens, tokens_of
from mme5core.errors import first_line
from mme5core.progress import duration

__all__ = ["Client", "Gate", "OpenGate", "backoff_s"]

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
LONG_WAIT_S = 60.0  # people are told why
ERROR_WITHOUT_STATUS = 500  # an error inside status 200 that names no status of its own


@dataclass(slots=True)
class _Failure:
    """A request that may be tried again."""

    message: str
    words: str = ""
    wait_s: float | None = None
    status: int | None = None
    is_unreachable: bool = False
    was_called: bool = True


@dataclass(slots=True)
class _Bill:
    """What the requests for one record have taken so far, those without an answer included."""

    calls: int = 0
    tokens: Tokens = field(default_factory=Tokens)


class Client:
    """Asks, and retries what may pass: here, and nowhere else.

    A server that refuses a strict schema, or answers it with no JSON, is asked for JSON, then in words alone; `form`
    says what an answer has shown, and `limit` by which name it takes the limit of tokens.

    Args:
        base_url: such as http://localhost:8000/v1.
        role: what messages call the server, as in "the teacher".
        api_key: servers without keys take any; never logged, and blanked in what the server says.
        timeout_s: of one request, from the first byte sent to the last received.
        form, limit: what an earlier run learnt; None: not known.
        fixed_form: the form to ask in, whatever the server does; None: found out.
        has_answer: the server has answered an earlier run: what it says of one request concerns that request.
        on_note: takes what people should know and what stops nothing.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        role: str,
        api_key: str | None,
        sampling: Sampling = Sampling(),  # noqa: B008  frozen
        timeout_s: float = 120.0,
        max_attempts: int = 5,
        gate: Gate | None = None,
        form: str | None = None,
        limit: str | None = None,
        fixed_form: str | None = None,
        has_answer: bool = False,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.role, self.sampling = model, role, sampling
        self._max_attempts, self._timeout_s = max_attempts, timeout_s
        self._gate, self._api_key = gate or OpenGate(), api_key
        self._form = AnswerForm(
            fixed_form or form or SCHEMA,
            limit or MAX_TOKENS,
            is_shown=form is not None and fixed_form in (None, form),
            is_fixed=fixed_form is not None,
        )
        self._has_answer = has_answer
        self._base_url, self._on_note = base_url, on_note
        self._watch = TokenWatch(role)
        self._client: openai.AsyncOpenAI | None = None

    @property
    def form(self) -> str | None:
        """The form that an answer of the server has shown; None until one has."""
        return self._form.name if self._form.is_shown else None

    @property
    def form_asked(self) -> str:
        """The form in which requests are made now."""
        return self._form.name

    @property
    def is_form_sought(self) -> bool:
        """Whether requests should go one by one, until it is known in which form the server answers."""
        return self._form.is_sought

    @property
    def limit(self) -> str:
        """By which name the limit of an answer's tokens is sent."""
        return self._form.limit

    def body(self, request: Request, form: str) -> dict[str, Any]:
        """The body of a chat completion, as this server takes it."""
        return request.body(self.model, self.sampling, form=form, limit=self.limit)

    async def ask(self, request: Request) -> Answer:
        """One answer to a prompt with pictures.

        Raises:
            RequestFailed: one of its kinds, see `failures`; it says what was sent and billed for nothing.
        """
        bill = _Bill()
        try:
            if self._form.is_sought:
                async with self._form.lock:  # one by one, until it is known what the server takes
                    if self._form.is_sought:
                        return await self._seek_form(request, bill)
            return await self._ask_by_either_limit(request, bill)
        except RequestFailed as error:
            error.calls, error.tokens = bill.calls, bill.tokens
            raise

    async def close(self) -> None:
        """Let the connections go; a request after it makes new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            # The library's own retries are off: they would hide calls from the budget and multiply with ours.
            # aiohttp below it takes three quarters of the time of its default.
            self._client = openai.AsyncOpenAI(
                base_url=self._base_url,
                api_key=self._api_key or "none",
                max_retries=0,
                timeout=self._timeout_s,
                http_client=openai.DefaultAioHttpClient(),
            )
        return self._client

    async def _seek_form(self, request: Request, bill: _Bill) -> Answer:
        """Ask in the strictest form, then in the next; a request refused in all is at fault itself."""
        first = self._form.name
        answer: Answer | None = None
        refused: RequestFailed | None = None
        try:
            for name in FORMS[FORMS.index(first) :]:
                self._form.name = name
                try:
                    answer = await self._ask_by_either_limit(request, bill)
                except RequestRejected as error:
                    refused = error
                    continue
                except ServerUnavailable as error:
                    if not self._form.may_be_refused_by(error):
                        raise
                    refused = error
                    continue
                if self._form.is_shown or not self._form.is_ignored_by(answer):
                    break
            if answer is None:
                assert refused is not None
                self._form.have_all_failed |= isinstance(refused, ServerUnavailable)
                raise refused
            self._form.num_unshown += 1
            return answer
        finally:
            if not self._form.is_shown:
                self._form.name = first

    async def _ask_by_either_limit(self, request: Request, bill: _Bill) -> Answer:
        """Ask, and again where a rejection has taught the other name of the limit."""
        limit = self.limit
        try:
            return await self._ask(request, bill)
        except RequestRejected:
            if self.limit == limit:
                raise
            return await self._ask(request, bill)

    async def _ask(self, request: Request, bill: _Bill) -> Answer:
        for attempt in range(1, self._max_attempts + 1):
            if not await self._gate.enter():
                raise BudgetSpent
            bill.calls += 1
            result = await self._request(request, bill)
            if isinstance(result, Answer):
                return result
            bill.calls -= not result.was_called
            if attempt == self._max_attempts:
                raise ServerUnavailable(
                    result.message, unreachable=result.is_unreachable, status=result.status, words=result.words
                )
            wait_s = result.wait_s
            await self._gate.pause(backoff_s(attempt) if wait_s is None else wait_s * random.uniform(1.0, 1.1))
        raise AssertionError("unreachable: every attempt returns or raises")

    async def _request(self, request: Request, bill: _Bill) -> Answer | _Failure:
        """One request, and its report to the gate.

        Raises:
            RequestFailed: trying again would not help, or should be left to the caller.
        """
        report: dict[str, Any] = {}
        form = self._form.name
        try:
            # As `chat.completions.create`, without its walk through every field of the request: a third of a call.
            # Of a timeout the library counts the pause between two bytes, so that a server that drips never ends.
            async with asyncio.timeout(self._timeout_s):
                content = await self._connected().post(
                    "/chat/completions", body=self.body(request, form), cast_to=bytes
                )
            answer = self._read(body_of(content, self._api_key), request, bill, form, report)
            if isinstance(answer, Answer):
                self._form.notice(answer)
            return answer
        except openai.APIStatusError as error:
            reply = ErrorReply.of(error, self._api_key)
            return self._failure(reply, report, f"{reply.status} from the {self.role}")
        except (openai.APIConnectionError, TimeoutError, aiohttp.ClientError) as error:
            failure = self._without_reply(error)
            if not failure.was_called:
                report["was_called"] = False
            return failure
        finally:
            self._gate.leave(**report)

    def _read(self, body: Any, request: Request, bill: _Bill, form: str, report: dict[str, Any]) -> Answer | _Failure:
        """The answer in a reply with status 200; what it says it has used is booked whatever else it holds.

        Raises:
            RequestFailed: as `_request`.
        """
        tokens = tokens_of(body)
        _book(tokens, bill, report)
        if (error := error_in(body)) is not None:
            reply = ErrorReply.inside(error, self._api_key)
            return self._failure(reply, report, f"an error with status 200 from the {self.role}")
        try:
            answer = answer_of(body, self.model, form=form)
        except NOT_OF_THE_PROTOCOL:
            words = server_words(body, self._api_key)
            if is_completion(body):
                raise AnswerUnreadable("an answer that is not of the protocol", words=words) from None
            if self.form is None and not self._has_answer:
                message = f"the {self.role}'s address answers, but not with chat completions"
                raise ServerMisconfigured(message, words=words) from None
            return _Failure("an answer that is not of the protocol", words)
        if not tokens:
            answer = answer.with_tokens(lambda: request.estimated_prompt_tokens(self.model))
            _book(answer.tokens, bill, report)
        elif not self._watch.is_over:
            note = self._watch.note(tokens.prompt, request.estimated_prompt_tokens(self.model))
            if note:
                self._on_note(note)
        self._has_answer = True
        return answer.with_bill(bill.calls, bill.tokens)

    def _failure(self, reply: ErrorReply, report: dict[str, Any], message: str) -> _Failure:
        """What an error reply means: a failure that may pass.

        Raises:
            RequestRejected, ServerMisconfigured, OutOfMoney: trying again would not help.
        """
        status = ERROR_WITHOUT_STATUS if reply.status is None else reply.status
        if reply.is_unpaid or not reply.may_pass(has_answer=self._has_answer):
            self._raise(reply, status)
        if status == 429 or reply.wait_s is not None:
            report["retry_after_s"] = reply.wait_s or 0.0
            if reply.words and (reply.wait_s or 0.0) >= LONG_WAIT_S:
                self._on_note(f"{message}: {reply.words}; it asks to wait {duration(reply.wait_s or 0.0)}")
        return _Failure(message, reply.words, reply.wait_s, status)

    def _raise(self, reply: ErrorReply, status: int) -> NoReturn:
        words = reply.words
        if reply.is_unpaid:
            raise OutOfMoney(self.role, status, words=words) from None
        if reply.is_of_the_key(has_answer=self._has_answer):
            raise wrong_key(self.role, status, bool(self._api_key), words=words) from None
        if status == 404:
            raise ServerMisconfigured(
                f"the {self.role} knows no model {self.model!r}, or no chat completions (404; most addresses end in "
                "/v1)",
                words=words,
            ) from None
        self._form.read_rejection(reply.whole_words, is_of_the_limit=reply.is_of_the_limit)
        raise RequestRejected(reply.line) from None

    def _without_reply(self, error: Exception) -> _Failure:
        """Nothing came back, or nothing that is HTTP."""
        if isinstance(error, TimeoutError) or (isinstance(error, openai.APITimeoutError) and not _is_lost(error)):
            return _Failure(f"no answer from the {self.role} in {self._timeout_s:g} s", is_unreachable=True)
        reason = without_key(" ".join(str(error.__cause__ or error).split())[:200], self._api_key)
        if isinstance(error, aiohttp.ClientError) or _is_no_http(error):
            return _Failure(f"a reply that is no HTTP from the {self.role} ({reason or first_line(error)})")
        was_called = not _was_never_connected(error)
        return _Failure(f"cannot reach the {self.role} ({reason})", is_unreachable=True, was_called=was_called)


def backoff_s(attempt: int) -> float:
    """How long to wait after so many failed attempts: twice as long each time, and never all workers at once."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)


def _book(tokens: Tokens, bill: _Bill, report: dict[str, Any]) -> None:
    if tokens:
        bill.tokens += tokens
        report |= {"prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion}


def _is_lost(error: openai.APITimeoutError) -> bool:
    """Whether there was no connection, or no more: the library calls that a timeout too, where aiohttp is below it."""
    below = error.__cause__ and error.__cause__.__cause__
    return isinstance(below, aiohttp.ClientConnectionError) and not isinstance(below, aiohttp.ServerTimeoutError)


def _is_no_http(error: BaseException | None) -> bool:
    """Whether what came back could not be read as HTTP, however deep the library has wrapped that."""
    while error is not None:
        if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
            return True
        error = error.__cause__
    return False


def _was_never_connected(error: BaseException) -> bool:
    return isinstance(error.__cause__ and error.__cause__.__cause__, aiohttp.ClientConnectorError)
