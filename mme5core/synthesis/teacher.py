"""The client of an OpenAI-compatible MLLM: one question, its answer, and what kind of failure a failure is."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from mme5core.errors import first_line

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and what it took: `calls` counts every request, failed ones included."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    calls: int


class TeacherRejected(Exception):
    """The server will never answer this request (400): the sample is refused."""

    def __init__(self, message: str, calls: int) -> None:
        super().__init__(message)
        self.calls = calls


class TeacherUnavailable(Exception):
    """No answer this time (429, 5xx, timeout, connection): the sample is left for the next run."""

    def __init__(self, message: str, calls: int, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.calls = calls
        self.unreachable = unreachable


class TeacherMisconfigured(Exception):
    """No request can succeed (wrong key, wrong model, not an API): the job stops and says so."""


class BudgetSpent(Exception):
    """Another call is not paid for."""

    def __init__(self, calls: int) -> None:
        super().__init__("the budget is spent")
        self.calls = calls


class Teacher:
    """Asks, and retries what may pass: here, and nowhere else.

    Args:
        base_url: such as http://localhost:8000/v1.
        api_key: servers without keys take any; never logged.
        allow_call: awaited before every request; False ends with `BudgetSpent`.
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
        allow_call: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self.model = model
        self._settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        self._max_attempts = max_attempts
        self._allow_call = allow_call
        # The client's own retries are off: they would hide calls from the budget and multiply with ours.
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key or "none", max_retries=0, timeout=timeout_s
        )

    async def ask(self, system: str, user: str, images: Sequence[bytes], schema: dict[str, Any]) -> Answer:
        """One answer to a prompt with pictures (encoded JPEG or PNG bytes).

        Raises:
            TeacherRejected, TeacherUnavailable, TeacherMisconfigured, BudgetSpent: see there.
        """
        content: list[Any] = [{"type": "text", "text": user}]
        content += [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in images]
        for attempt in range(1, self._max_attempts + 1):
            if self._allow_call is not None and not await self._allow_call():
                raise BudgetSpent(attempt - 1)
            try:
                return await self._request(system, content, schema, attempt)
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise TeacherMisconfigured(f"the teacher refused the key ({error.status_code})") from None
            except openai.NotFoundError:
                raise TeacherMisconfigured(f"the teacher knows no model {self.model!r} at this address") from None
            except openai.APIStatusError as error:
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise TeacherRejected(f"{error.status_code}: {first_line(error)[:200]}", attempt) from None
                failure, wait_s = f"{error.status_code} from the teacher", _retry_after(error)
            except (openai.APIConnectionError, openai.APITimeoutError) as error:
                failure, wait_s = _connection_failure(error), None
            except (openai.APIResponseValidationError, ValueError, AttributeError, TypeError):
                failure, wait_s = "an answer that is not of the protocol", None
            if attempt == self._max_attempts:
                unreachable = failure.startswith("cannot reach")
                raise TeacherUnavailable(failure, attempt, unreachable=unreachable)
            backoff_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
            await asyncio.sleep(wait_s if wait_s is not None else backoff_s)
        raise AssertionError("unreachable: every attempt returns or raises")

    async def close(self) -> None:
        await self._client.close()

    async def _request(self, system: str, content: list[Any], schema: dict[str, Any], attempt: int) -> Answer:
        response = await self._client.chat.completions.create(
            model=self.model,
            messages=[{"role": "system", "content": system}, {"role": "user", "content": content}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "sample", "strict": True, "schema": schema},
            },
            **self._settings,
        )
        # An HTML page with status 200 comes back as a string, not as an error.
        if isinstance(response, str) or not getattr(response, "choices", None):
            raise TeacherMisconfigured("the teacher's address answers, but not with chat completions")
        choice = response.choices[0]
        if getattr(choice.message, "refusal", None):
            return self._answer(response, "", "content_filter", attempt)
        return self._answer(response, choice.message.content or "", choice.finish_reason, attempt)

    def _answer(self, response: Any, text: str, finish_reason: str | None, calls: int) -> Answer:
        usage = response.usage
        return Answer(
            text,
            finish_reason,
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
            response.model or self.model,
            calls,
        )


def data_url(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if data[8:12] == b"WEBP" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _retry_after(error: openai.APIStatusError) -> float | None:
    value = error.response.headers.get("retry-after")
    try:
        return min(60.0, max(0.0, float(value))) if value else None
    except ValueError:
        return None


def _connection_failure(error: openai.APIConnectionError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return "no answer from the teacher in time"
    return f"cannot reach the teacher ({error.__cause__ or error})"
