"""The client of an OpenAI-compatible MLLM: one question, its answer, and what kind of failure a failure is."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import aiohttp
import openai

from mme5core.errors import first_line
from mme5core.images import picture_size
from mme5core.synthesis.pricing import expected_tokens, text_tokens

FIRST_WAIT_S, LONGEST_WAIT_S, LONGEST_RETRY_AFTER_S = 0.5, 30.0, 600.0
# What OpenAI says, with 429, 400 or of a whole batch, of an account that must be paid into.
OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
# How an answer's form is asked for, the strictest first.
SCHEMA, JSON_MODE, PLAIN = MODES = ("json_schema", "json_object", "plain")
# The names of the limit of an answer's tokens: everybody's, and that of OpenAI's reasoning models.
MAX_TOKENS, MAX_COMPLETION_TOKENS = "max_tokens", "max_completion_tokens"


@dataclass(frozen=True, slots=True)
class Request:
    """One question, whatever the server.

    Args:
        images: encoded bytes (JPEG, PNG or WebP), shown after the user's text.
        schema: JSON schema of the answer; `form` says the same in words, for servers that take no schema.
    """

    system: str
    user: str
    images: Sequence[bytes]
    schema: dict[str, Any]
    form: str
    seed: int

    def body(self, model: str, settings: dict[str, Any], mode: str = SCHEMA) -> dict[str, Any]:
        """The body of a chat completion."""
        user = self.user if mode == SCHEMA else f"{self.user}\n\n{self.form}"
        content: list[dict[str, Any]] = [{"type": "text", "text": user}]
        content += [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in self.images]
        body = {
            "model": model,
            "messages": [{"role": "system", "content": self.system}, {"role": "user", "content": content}],
            "seed": self.seed,
        } | settings
        if mode == SCHEMA:
            schema = {"name": "sample", "strict": True, "schema": self.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif mode == JSON_MODE:
            body["response_format"] = {"type": "json_object"}
        return body

    def key(self, model: str, settings: dict[str, Any]) -> str:
        """32 hex digits over all that the answer depends on, pictures by their content."""
        digest = hashlib.sha256(json.dumps([model, sorted(settings.items()), self.schema, self.seed]).encode())
        for part in (self.system.encode(), self.user.encode(), *self.images):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and what it took: `calls` counts every request, failed ones included."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    calls: int = 1
    mode: str = SCHEMA


class TeacherRejected(Exception):
    """The server will never answer this request (400): the sample is refused."""

    def __init__(self, message: str, calls: int) -> None:
        super().__init__(message)
        self.calls = calls


class TeacherUnavailable(Exception):
    """No answer this time (429, 5xx, timeout, connection): the sample is left for the next run.

    `unreachable` where nothing answered at all.
    """

    def __init__(self, message: str, calls: int, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.calls = calls
        self.unreachable = unreachable


class OutOfMoney(TeacherUnavailable):
    """The account is empty: nothing is answered until somebody pays in."""

    def __init__(self, status_code: int, calls: int = 0) -> None:
        super().__init__(f"the teacher's account has no money left ({status_code})", calls)


class TeacherMisconfigured(Exception):
    """No request can succeed (wrong key, wrong model, not an API): the job stops and says so."""

    def __init__(self, message: str, calls: int = 0) -> None:
        super().__init__(message)
        self.calls = calls


class BudgetSpent(Exception):
    """Another call is not paid for."""

    def __init__(self, calls: int) -> None:
        super().__init__("the budget is spent")
        self.calls = calls


class Gate(Protocol):
    """What every request passes, over all workers: the budget, the rates, the ceiling of calls in flight."""

    async def enter(self) -> bool:
        """Wait for leave to send one request; False when the budget is spent."""
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
    message: str
    wait_s: float | None = None
    is_unreachable: bool = False
    was_called: bool = True


@dataclass(slots=True)
class _Form:
    """The strictest form of answer that the server takes, and its name of the limit: found by its first rejections."""

    mode: str = SCHEMA
    limit: str = MAX_TOKENS
    is_proven: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Teacher:
    """Asks, and retries what may pass: here, and nowhere else.

    A server that refuses a strict schema is asked for JSON, and one that refuses that in words alone; `mode` says what
    works, and `limit` by which name it takes the limit of tokens.

    Args:
        base_url: such as http://localhost:8000/v1.
        api_key: servers without keys take any; never logged.
        mode, limit: what an earlier run found out; None: not known.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None,
        temperature: float = 1.0,
        max_tokens: int = 2048,
        timeout_s: float = 120.0,
        max_attempts: int = 5,
        gate: Gate | None = None,
        mode: str | None = None,
        limit: str | None = None,
    ) -> None:
        self.model = model
        self.settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        self._max_attempts, self._timeout_s = max_attempts, timeout_s
        self._gate, self._has_key = gate or OpenGate(), bool(api_key)
        self._form = _Form(mode or SCHEMA, limit or MAX_TOKENS, is_proven=mode is not None)
        self._base_url, self._api_key = base_url, api_key or "none"
        self._client: openai.AsyncOpenAI | None = None

    @property
    def mode(self) -> str | None:
        """The form in which the server answers; None until it has."""
        return self._form.mode if self._form.is_proven else None

    @property
    def limit(self) -> str:
        """By which name the limit of an answer's tokens is sent."""
        return self._form.limit

    def body(self, request: Request, mode: str) -> dict[str, Any]:
        """The body of a chat completion, as this server takes it."""
        settings = {self.limit if name == MAX_TOKENS else name: value for name, value in self.settings.items()}
        return request.body(self.model, settings, mode)

    async def ask(self, request: Request) -> Answer:
        """One answer to a prompt with pictures.

        Raises:
            TeacherRejected, TeacherUnavailable, OutOfMoney, TeacherMisconfigured, BudgetSpent: see there.
        """
        if not self._form.is_proven:
            async with self._form.lock:  # one by one, until it is known what the server takes
                if not self._form.is_proven:
                    return await self._find_form(request)
        limit = self.limit
        try:
            return await self._ask(request, 0)
        except TeacherRejected as error:
            if self.limit == limit:
                raise
            return await self._ask(request, error.calls)

    async def close(self) -> None:
        """Let the connections go; a question after it makes new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            # The client's own retries are off: they would hide calls from the budget and multiply with ours.
            # aiohttp below it takes three quarters of the time of its default.
            self._client = openai.AsyncOpenAI(
                base_url=self._base_url,
                api_key=self._api_key,
                max_retries=0,
                timeout=self._timeout_s,
                http_client=openai.DefaultAioHttpClient(),
            )
        return self._client

    async def _find_form(self, request: Request) -> Answer:
        """Ask in the strictest form, then in the next; a request rejected in all is at fault itself."""
        calls, first = 0, self._form.mode
        position = MODES.index(first)
        try:
            while position < len(MODES):
                self._form.mode, limit = MODES[position], self.limit
                try:
                    answer = await self._ask(request, calls)
                except TeacherRejected as error:
                    calls, rejected = error.calls, error
                    position += self.limit == limit  # else it was not for the form
                    continue
                self._form.is_proven = True
                return answer
            raise rejected
        finally:
            if not self._form.is_proven:
                self._form.mode = first

    async def _ask(self, request: Request, calls: int) -> Answer:
        for attempt in range(1, self._max_attempts + 1):
            if not await self._gate.enter():
                raise BudgetSpent(calls)
            calls += 1
            found = await self._request(request, calls)
            if isinstance(found, Answer):
                return found
            calls -= not found.was_called
            if attempt == self._max_attempts:
                raise TeacherUnavailable(found.message, calls, unreachable=found.is_unreachable)
            wait_s = found.wait_s
            await asyncio.sleep(backoff_s(attempt) if wait_s is None else wait_s * random.uniform(1.0, 1.1))
        raise AssertionError("unreachable: every attempt returns or raises")

    async def _request(self, request: Request, calls: int) -> Answer | _Failure:
        """One request, and what it tells the gate.

        Raises:
            TeacherRejected, TeacherMisconfigured: trying again would not help.
        """
        told: dict[str, Any] = {}
        mode = self._form.mode
        try:
            # As `chat.completions.create`, without its walk through every value of the request: a third of a call.
            body = self.body(request, mode)
            response = await self._connected().post("/chat/completions", body=body, cast_to=object)
            answer = self._read(response, request, calls, mode)
            told = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
            return answer
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise wrong_key(error, self._has_key, calls) from None
        except openai.NotFoundError:
            message = (
                f"the teacher knows no model {self.model!r}, or no chat completions (404; most addresses end in /v1)"
            )
            raise TeacherMisconfigured(message, calls) from None
        except openai.APIStatusError as error:
            if is_unpaid(error.status_code, error.code):
                raise OutOfMoney(error.status_code, calls) from None
            if not may_pass(error.status_code):
                is_wanted = error.param == MAX_TOKENS or error.code == "unsupported_parameter"
                if is_wanted and MAX_COMPLETION_TOKENS in str(error):  # OpenAI says so of its reasoning models
                    self._form.limit = MAX_COMPLETION_TOKENS
                raise TeacherRejected(f"{error.status_code}: {first_line(error)[:200]}", calls) from None
            wait_s = _retry_after(error)
            if error.status_code == 429:
                told = {"retry_after_s": wait_s or 0.0}
            return _Failure(f"{error.status_code} from the teacher", wait_s)
        except openai.APIConnectionError as error:
            if isinstance(error, openai.APITimeoutError) and not _is_connection_lost(error):
                return _Failure(f"no answer from the teacher in {self._timeout_s:g} s", is_unreachable=True)
            told = {"was_called": not _was_never_connected(error)}
            return _Failure(f"cannot reach the teacher ({error.__cause__ or error})", None, True, told["was_called"])
        except (openai.APIResponseValidationError, ValueError, AttributeError, TypeError, LookupError):
            return _Failure("an answer that is not of the protocol")
        finally:
            self._gate.leave(**told)

    def _read(self, response: Any, request: Request, calls: int, mode: str) -> Answer:
        # An HTML page with status 200 comes back as a string, not as an error.
        if (not isinstance(response, dict) or not response.get("choices")) and not self._form.is_proven:
            raise TeacherMisconfigured("the teacher's address answers, but not with chat completions", calls)
        answer = answer_of(response, self.model, calls=calls, mode=mode)
        return with_tokens(answer, lambda: estimated_prompt_tokens(request, self.model))


def answer_of(completion: dict[str, Any], model: str, *, calls: int = 1, mode: str = SCHEMA) -> Answer:
    """The answer in the body of a chat completion. A refusal of the server's own counts as filtered; its text is kept.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: it is none.
    """
    choice, usage = completion["choices"][0], completion.get("usage") or {}
    message = choice["message"]
    refusal = message.get("refusal")
    content = refusal or message.get("content") or ""
    if not isinstance(content, str):  # parts, of models that think aloud
        content = "".join(part["text"] for part in content if part["type"] == "text")
    return Answer(
        content.encode(errors="backslashreplace").decode(),  # half a character is no text
        "content_filter" if refusal else choice.get("finish_reason"),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        str(completion.get("model") or model),
        calls,
        mode,
    )


def with_tokens(answer: Answer, prompt_tokens: Callable[[], int]) -> Answer:
    """The answer, with estimates where the server counts no tokens: a budget in money would else never be spent."""
    if answer.prompt_tokens or answer.completion_tokens:
        return answer
    return replace(answer, prompt_tokens=prompt_tokens(), completion_tokens=text_tokens(answer.text))


def estimated_prompt_tokens(request: Request, model: str) -> int:
    sizes = [picture_size(data) for data in request.images]
    return expected_tokens(request.system + request.user, sizes, model)[0]


def backoff_s(attempt: int) -> float:
    """How long to wait after so many failed attempts: twice as long each time, and never all at once."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)


def wrong_key(error: openai.APIStatusError, has_key: bool, calls: int = 0) -> TeacherMisconfigured:
    """What to say of a 401 or 403."""
    what = "refused the key in OPENAI_API_KEY" if has_key else "wants a key, and OPENAI_API_KEY is not set"
    return TeacherMisconfigured(f"the teacher {what} ({error.status_code})", calls)


def may_pass(status_code: int) -> bool:
    """Whether the same request may be answered another time."""
    return status_code in (408, 409, 429) or status_code >= 500


def is_unpaid(status_code: int, code: str | None) -> bool:
    """Whether an error, by its HTTP status and the code in its body, says that the account must be paid into first."""
    return status_code == 402 or code in OUT_OF_MONEY


def data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


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
    """Whether there was no connection, or no more: the client calls that a timeout too, where aiohttp is below it."""
    below = error.__cause__ and error.__cause__.__cause__
    return isinstance(below, aiohttp.ClientConnectionError) and not isinstance(below, aiohttp.ServerTimeoutError)


def _was_never_connected(error: openai.APIConnectionError) -> bool:
    return isinstance(error.__cause__ and error.__cause__.__cause__, aiohttp.ClientConnectorError)
