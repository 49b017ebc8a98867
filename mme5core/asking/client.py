"""The client of an OpenAI-compatible MLLM: one request, its answer, and retries of what may pass."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import openai

from mme5core.asking.answer import NOT_OF_THE_PROTOCOL, Answer, answer_of
from mme5core.asking.failures import (
    BudgetSpent,
    OutOfMoney,
    RequestRejected,
    ServerMisconfigured,
    ServerUnavailable,
    is_unpaid,
    may_pass,
    wrong_key,
)
from mme5core.asking.request import FORMS, MAX_COMPLETION_TOKENS, MAX_TOKENS, SCHEMA, Request, Sampling
from mme5core.errors import first_line

FIRST_WAIT_S, LONGEST_WAIT_S, LONGEST_RETRY_AFTER_S = 0.5, 30.0, 600.0


class Gate(Protocol):
    """What every request passes, over all workers: the budget, the rates, the ceiling of calls in flight."""

    async def enter(self) -> bool:
        """Wait for a permit to send one request; False when the budget is spent."""
        ...

    def leave(
        self,
        *,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        retry_after_s: float | None = None,
        was_called: bool = True,
    ) -> None:
        """The request has ended.

        Args:
            retry_after_s: where the server said that it was too much (0: not for how long).
            was_called: False where it was never made, and costs nothing.
        """
        ...


class OpenGate:
    """Lets everything through."""

    async def enter(self) -> bool:
        return True

    def leave(self, **_: Any) -> None:
        pass


@dataclass(slots=True)
class _Failure:
    """A request that may be tried again."""

    message: str
    wait_s: float | None = None
    is_unreachable: bool = False
    was_called: bool = True


@dataclass(slots=True)
class _Form:
    """The strictest form of answer that the server takes, and its name of the limit: learnt from its rejections."""

    form: str = SCHEMA
    limit: str = MAX_TOKENS
    is_proven: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Client:
    """Asks, and retries what may pass: here, and nowhere else.

    A server that refuses a strict schema is asked for JSON, and one that refuses that in words alone; `form` says what
    works, and `limit` by which name it takes the limit of tokens.

    Args:
        base_url: such as http://localhost:8000/v1.
        role: what messages call the server, as in "the teacher".
        api_key: servers without keys take any; never logged.
        form, limit: what an earlier run learnt; None: not known.
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
    ) -> None:
        self.model, self.role, self.sampling = model, role, sampling
        self._max_attempts, self._timeout_s = max_attempts, timeout_s
        self._gate, self._has_key = gate or OpenGate(), bool(api_key)
        self._form = _Form(form or SCHEMA, limit or MAX_TOKENS, is_proven=form is not None)
        self._base_url, self._api_key = base_url, api_key or "none"
        self._client: openai.AsyncOpenAI | None = None

    @property
    def form(self) -> str | None:
        """The form in which the server answers; None until it has."""
        return self._form.form if self._form.is_proven else None

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
            RequestFailed: one of its kinds, see `failures`.
        """
        if not self._form.is_proven:
            async with self._form.lock:  # one by one, until it is known what the server takes
                if not self._form.is_proven:
                    return await self._learn_form(request)
        limit = self.limit
        try:
            return await self._ask(request, 0)
        except RequestRejected as error:
            if self.limit == limit:
                raise
            return await self._ask(request, error.calls)

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
                api_key=self._api_key,
                max_retries=0,
                timeout=self._timeout_s,
                http_client=openai.DefaultAioHttpClient(),
            )
        return self._client

    async def _learn_form(self, request: Request) -> Answer:
        """Ask in the strictest form, then in the next; a request rejected in all is at fault itself."""
        calls, first = 0, self._form.form
        position = FORMS.index(first)
        try:
            while position < len(FORMS):
                self._form.form, limit = FORMS[position], self.limit
                try:
                    answer = await self._ask(request, calls)
                except RequestRejected as error:
                    calls, rejected = error.calls, error
                    position += self.limit == limit  # else it was rejected for the limit's name, not for the form
                    continue
                self._form.is_proven = True
                return answer
            raise rejected
        finally:
            if not self._form.is_proven:
                self._form.form = first

    async def _ask(self, request: Request, calls: int) -> Answer:
        for attempt in range(1, self._max_attempts + 1):
            if not await self._gate.enter():
                raise BudgetSpent(calls)
            calls += 1
            result = await self._request(request, calls)
            if isinstance(result, Answer):
                return result
            calls -= not result.was_called
            if attempt == self._max_attempts:
                raise ServerUnavailable(result.message, calls, unreachable=result.is_unreachable)
            wait_s = result.wait_s
            await asyncio.sleep(backoff_s(attempt) if wait_s is None else wait_s * random.uniform(1.0, 1.1))
        raise AssertionError("unreachable: every attempt returns or raises")

    async def _request(self, request: Request, calls: int) -> Answer | _Failure:
        """One request, and its report to the gate.

        Raises:
            RequestRejected, ServerMisconfigured, OutOfMoney: trying again would not help.
        """
        report: dict[str, Any] = {}
        form = self._form.form
        try:
            # As `chat.completions.create`, without its walk through every field of the request: a third of a call.
            body = self.body(request, form)
            response = await self._connected().post("/chat/completions", body=body, cast_to=object)
            answer = self._read(response, request, calls, form)
            report = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
            return answer
        except openai.APIStatusError as error:
            wait_s = self._wait_after(error, calls)
            if error.status_code == 429:
                report = {"retry_after_s": wait_s or 0.0}
            return _Failure(f"{error.status_code} from the {self.role}", wait_s)
        except openai.APIConnectionError as error:
            if isinstance(error, openai.APITimeoutError) and not _is_connection_lost(error):
                return _Failure(f"no answer from the {self.role} in {self._timeout_s:g} s", is_unreachable=True)
            report = {"was_called": not _was_never_connected(error)}
            reason = f"cannot reach the {self.role} ({error.__cause__ or error})"
            return _Failure(reason, None, True, report["was_called"])
        except (openai.APIResponseValidationError, *NOT_OF_THE_PROTOCOL):
            return _Failure("an answer that is not of the protocol")
        finally:
            self._gate.leave(**report)

    def _wait_after(self, error: openai.APIStatusError, calls: int) -> float | None:
        """How long the server asks to wait before the request is tried again.

        Raises:
            RequestRejected, ServerMisconfigured, OutOfMoney: trying again would not help.
        """
        status = error.status_code
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            raise wrong_key(self.role, status, self._has_key, calls) from None
        if isinstance(error, openai.NotFoundError):
            raise ServerMisconfigured(
                f"the {self.role} knows no model {self.model!r}, or no chat completions (404; most addresses end in "
                "/v1)",
                calls,
            ) from None
        if is_unpaid(status, error.code):
            raise OutOfMoney(self.role, status, calls) from None
        if not may_pass(status):
            is_wanted = error.param == MAX_TOKENS or error.code == "unsupported_parameter"
            if is_wanted and MAX_COMPLETION_TOKENS in str(error):  # OpenAI says so of its reasoning models
                self._form.limit = MAX_COMPLETION_TOKENS
            raise RequestRejected(f"{status}: {first_line(error)[:200]}", calls) from None
        return _retry_after(error)

    def _read(self, response: Any, request: Request, calls: int, form: str) -> Answer:
        # An HTML page with status 200 comes back as a string, not as an error.
        if (not isinstance(response, dict) or not response.get("choices")) and not self._form.is_proven:
            raise ServerMisconfigured(f"the {self.role}'s address answers, but not with chat completions", calls)
        answer = answer_of(response, self.model, calls=calls, form=form)
        return answer.with_tokens(lambda: request.estimated_prompt_tokens(self.model))


def backoff_s(attempt: int) -> float:
    """How long to wait after so many failed attempts: twice as long each time, and never all workers at once."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds to wait, as the server says in one of its two ways."""
    headers = error.response.headers
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return min(LONGEST_RETRY_AFTER_S, max(0.0, float(headers[name]) * unit_s))
        except (KeyError, ValueError):
            continue
    return None


def _is_connection_lost(error: openai.APITimeoutError) -> bool:
    """Whether there was no connection, or no more: the library calls that a timeout too, where aiohttp is below it."""
    below = error.__cause__ and error.__cause__.__cause__
    return isinstance(below, aiohttp.ClientConnectionError) and not isinstance(below, aiohttp.ServerTimeoutError)


def _was_never_connected(error: openai.APIConnectionError) -> bool:
    return isinstance(error.__cause__ and error.__cause__.__cause__, aiohttp.ClientConnectorError)
