"""OpenAI's Batch API: a file of requests in, a file of answers out within a day, at half the price."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import openai

from mme5core.asking.client import backoff_s
from mme5core.asking.error_status import ErrorReply
from mme5core.asking.failures import (
    OUT_OF_MONEY,
    NotThere,
    OutOfMoney,
    ServerMisconfigured,
    ServerUnavailable,
    may_pass,
    wrong_key,
)
from mme5core.asking.server_words import LONGEST, body_of, server_words, without_key
from mme5core.errors import first_line

MAX_FILE_BYTES = 150 << 20  # OpenAI takes 200 MB
ENDPOINT: Final = "/v1/chat/completions"
CLOCKS_DIFFER_S = 3600.0  # ours and the server's, at most
OVER = ("completed", "failed", "expired", "cancelled")
RUNNING = ("validating", "in_progress", "finalizing", "cancelling", "queued", "pending", "running", "created")
_OTHER_NAMES = {
    "canceled": "cancelled",
    "canceling": "cancelling",
    "error": "failed",
    "timeout_exceeded": "expired",
} | dict.fromkeys(("complete", "succeeded", "success", "ended", "done", "finished"), "completed")
# Of one call with all of its retries: files of 150 MB go up, and as many answers come down.
LEAST_LIMIT_S = 1800.0
_NAME = "mme5"  # the key of a batch's name in its metadata


@dataclass(frozen=True, slots=True)
class BatchState:
    """Where a batch stands.

    Args:
        status: by OpenAI's names, whatever the server's spelling.
        files: of answers, then of errors; late or missing ones have none.
        num_answered: requests that the server says it has answered.
        problem: why it failed as a whole; `codes` are the server's names for that.
    """

    id: str
    status: str
    input_file: str = ""
    output_file: str = ""
    error_file: str = ""
    num_answered: int = 0
    problem: str = ""
    codes: tuple[str, ...] = ()

    @property
    def is_queue_full(self) -> bool:
        """Whether it may pass when other batches are done."""
        return "token_limit_exceeded" in self.codes

    @property
    def is_unpaid(self) -> bool:
        """Whether it may pass when somebody has paid into the account."""
        return any(code in OUT_OF_MONEY for code in self.codes)

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def is_known(self) -> bool:
        """Whether the status is one that says whether to wait."""
        return self.is_over or self.status in RUNNING

    @classmethod
    def of(cls, body: dict[str, Any]) -> BatchState:
        """From the body of a reply.

        >>> BatchState.of({"id": "b", "status": "FAILED"}).problem
        'it gives no reason'
        """
        status = str(body.get("status")).casefold().rpartition(".")[2].replace("-", "_").replace(" ", "_")
        errors = body.get("errors")
        listed = errors.get("data") if isinstance(errors, dict) else errors
        listed = listed if isinstance(listed, list) else [listed] if listed else []
        codes = tuple(str(error["code"]) for error in listed if isinstance(error, dict) and error.get("code"))
        problem = server_words(listed[:1]) if any(_words_of(error) for error in listed[:1]) else "".join(codes[:1])
        counts = body.get("request_counts")
        answered = counts.get("completed") if isinstance(counts, dict) else 0
        return cls(
            str(body.get("id") or ""),
            _OTHER_NAMES.get(status, status),
            str(body.get("input_file_id") or ""),
            str(body.get("output_file_id") or ""),
            str(body.get("error_file_id") or ""),
            answered if isinstance(answered, int) else 0,
            problem or server_words(body.get("error")) or "it gives no reason",
            codes,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request of a batch came to; `status_code` is 0 where it was never sent (expired, cancelled)."""

    custom_id: str
    status_code: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Replies:
    """What a batch came to, as far as its files are there; `lost_file` is the file of answers that is not."""

    replies: list[Reply]
    missing: tuple[str, ...] = ()
    lost_file: str = ""


def batch_line(custom_id: str, body: dict[str, Any]) -> bytes:
    """One request as a line of the file to send."""
    line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


class BatchClient:
    """Sends files of requests and fetches what came of them.

    Every method raises `ServerMisconfigured` where the server has no Batch API or does not take the key, and
    `ServerUnavailable` where it does not answer, after `max_attempts`.
    """

    def __init__(self, base_url: str, *, role: str, api_key: str | None, timeout_s: float, max_attempts: int) -> None:
        self._role, self._api_key, self._max_attempts = role, api_key, max_attempts
        self._limit_s = max(LEAST_LIMIT_S, 2 * timeout_s * max_attempts)
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key or "none", max_retries=max_attempts - 1, timeout=timeout_s
        )

    async def submit(self, file: Path, name: str) -> str:
        """Send a file of `batch_line`s; returns the batch's id. `find` finds it by `name`."""
        started_s = time.time()
        async with self._translated():
            sent = await self._client.files.create(file=file, purpose="batch")
            # Not tried again by the client: of a request that timed out there may be a batch all the same.
            client = self._client.with_options(max_retries=0)
            for attempt in range(1, self._max_attempts + 1):
                try:
                    batch = await client.batches.create(
                        input_file_id=sent.id, endpoint=ENDPOINT, completion_window="24h", metadata={_NAME: name}
                    )
                    return batch.id
                except openai.APIStatusError as error:
                    if ErrorReply.of(error, self._api_key).is_unpaid or not may_pass(error.status_code):
                        await self._remove_file(sent.id)  # there is no batch of it, and will be none
                        raise
                    if attempt == self._max_attempts:
                        raise
                except openai.APIConnectionError:
                    if attempt == self._max_attempts:
                        raise
                await asyncio.sleep(backoff_s(attempt))
                try:
                    batch_id = await self.find(name, since_s=started_s - CLOCKS_DIFFER_S)
                except (OutOfMoney, ServerMisconfigured) as error:  # which says nothing of the batch
                    raise ServerUnavailable(f"nobody knows whether a batch was made ({error})") from None
                if batch_id is not None:
                    return batch_id
        raise AssertionError("unreachable: every attempt returns or raises")

    async def find(self, name: str, *, since_s: float) -> str | None:
        """The batch of this name, if it was made after `since_s` (Unix time)."""
        async with self._translated():
            async for batch in self._client.batches.list(limit=100):  # the newest first
                if (batch.metadata or {}).get(_NAME) == name:
                    return batch.id
                if batch.created_at < since_s:
                    break
        return None

    async def state(self, batch_id: str) -> BatchState:
        async with self._translated():
            body = body_of(await self._client.get(f"/batches/{batch_id}", cast_to=bytes), self._api_key)
        if not isinstance(body, dict) or "status" not in body:
            raise NotThere(f"the {self._role} has no Batch API at this address ({server_words(body)[:80]})")
        return BatchState.of(body)

    async def replies(self, batch: BatchState) -> Replies:
        """What the requests came to, in any order; one that was never looked at may be missing, and so may a file."""
        replies, missing = list[Reply](), list[str]()
        for file in filter(None, (batch.output_file, batch.error_file)):
            async with self._translated():
                try:
                    content = await self._client.get(f"/files/{file}/content", cast_to=bytes)
                except openai.NotFoundError:
                    missing.append(file)
                    continue
            text = without_key(content.decode(errors="replace"), self._api_key)
            # A line that cannot be read costs the other lines nothing.
            replies += [reply for line in text.split("\n") if (reply := _reply(line)) is not None]
        lost = batch.output_file if batch.output_file in missing else ""
        if not batch.output_file and batch.num_answered:
            lost = "of the answers"
            missing.append(lost)
        return Replies(replies, tuple(missing), lost)

    async def forget(self, batch: BatchState) -> None:
        """Remove the file of requests from the server, as far as it lets us: accounts hold so many bytes."""
        await self._remove_file(batch.input_file)

    async def _remove_file(self, file_id: str) -> None:
        with contextlib.suppress(openai.OpenAIError):
            await self._client.with_options(max_retries=0).files.delete(file_id)

    def _line(self, error: Exception) -> str:
        """The library's line of an error, or the server's words."""
        if isinstance(error, openai.APIStatusError):
            return ErrorReply.of(error, self._api_key).line.partition(": ")[2]
        return without_key(first_line(error)[:200], self._api_key)

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._limit_s):
                yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            words = ErrorReply.of(error, self._api_key).words
            raise wrong_key(self._role, error.status_code, bool(self._api_key), words=words) from None
        except (openai.NotFoundError, AttributeError) as error:  # of a page of HTML the client makes a string
            line = self._line(error)[:LONGEST]
            raise NotThere(f"the {self._role} has no Batch API at this address ({line})") from None
        except (json.JSONDecodeError, LookupError) as error:
            raise ServerUnavailable(f"a reply that is not of the protocol ({self._line(error)})") from None
        except openai.APIStatusError as error:
            reply = ErrorReply.of(error, self._api_key)
            if reply.is_unpaid:
                raise OutOfMoney(self._role, error.status_code, words=reply.words) from None
            if not may_pass(error.status_code):
                raise ServerMisconfigured(f"the {self._role} refuses the batch ({self._line(error)})") from None
            raise ServerUnavailable(f"no Batch API now ({self._line(error)})") from None
        except (openai.APIConnectionError, TimeoutError) as error:
            raise ServerUnavailable(f"no Batch API now ({self._line(error)})", unreachable=True) from None


def _words_of(error: Any) -> bool:
    """Whether an error of a batch has words beside its code."""
    return isinstance(error, str) or (isinstance(error, dict) and bool(error.get("message")))


def _reply(text: str) -> Reply | None:
    """One line of a file of answers; None where it is none."""
    try:
        line = json.loads(text, strict=False)
        custom_id, response = str(line["custom_id"]), line.get("response")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(response, dict):  # null, where it was never sent
        return Reply(custom_id, 0, {})
    body = response.get("body") or {}
    # Of a server behind another one it may be a page.
    body = body if isinstance(body, dict) else {"error": {"message": str(body)}}
    try:
        status_code = int(response.get("status_code") or 0)
    except (TypeError, ValueError):
        status_code = 0
    return Reply(custom_id, status_code, body)
