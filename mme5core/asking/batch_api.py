"""OpenAI's Batch API: a file of requests in, a file of answers out within a day, at half the price."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import openai

from mme5core.asking.client import backoff_s
from mme5core.asking.failures import (
    OUT_OF_MONEY,
    NotThere,
    OutOfMoney,
    ServerMisconfigured,
    ServerUnavailable,
    is_unpaid,
    may_pass,
    wrong_key,
)
from mme5core.errors import first_line

MAX_FILE_BYTES = 150 << 20  # OpenAI takes 200 MB
ENDPOINT: Final = "/v1/chat/completions"
CLOCKS_DIFFER_S = 3600.0  # ours and the server's, at most
OVER = ("completed", "failed", "expired", "cancelled")
_NAME = "mme5"  # the key of a batch's name in its metadata


@dataclass(frozen=True, slots=True)
class BatchState:
    """Where a batch stands; `problem` is why it failed as a whole, and `codes` are the server's names for that."""

    id: str
    status: str
    input_file: str = ""
    files: tuple[str, ...] = ()
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


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request of a batch came to; `status_code` is 0 where it was never sent (expired, cancelled)."""

    custom_id: str
    status_code: int
    body: dict[str, Any]


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
        self._role, self._has_key, self._max_attempts = role, bool(api_key), max_attempts
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key or "none", max_retries=max_attempts - 1, timeout=timeout_s
        )

    async def submit(self, file: Path, name: str) -> str:
        """Send a file of `batch_line`s; returns the batch's id. `find` finds it by `name`."""
        started_s = time.time()
        with self._translated():
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
                    if is_unpaid(error.status_code, error.code) or not may_pass(error.status_code):
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
        with self._translated():
            async for batch in self._client.batches.list(limit=100):  # the newest first
                if (batch.metadata or {}).get(_NAME) == name:
                    return batch.id
                if batch.created_at < since_s:
                    break
        return None

    async def state(self, batch_id: str) -> BatchState:
        with self._translated():
            batch = await self._client.batches.retrieve(batch_id)
        errors = (batch.errors.data or []) if batch.errors else []
        return BatchState(
            batch.id,
            batch.status,
            batch.input_file_id,
            tuple(file for file in (batch.output_file_id, batch.error_file_id) if file),
            (errors[0].message or errors[0].code or "")[:200] if errors else "",
            tuple(error.code for error in errors if error.code),
        )

    async def replies(self, batch: BatchState) -> list[Reply]:
        """What the requests came to, in any order; one that was never looked at may be missing."""
        replies = []
        for file in batch.files:
            with self._translated():
                content = await self._client.files.content(file)
                replies += [_reply(json.loads(line)) for line in content.content.splitlines() if line.strip()]
        return replies

    async def forget(self, batch: BatchState) -> None:
        """Remove the file of requests from the server, as far as it lets us: accounts hold so many bytes."""
        await self._remove_file(batch.input_file)

    async def _remove_file(self, file_id: str) -> None:
        with contextlib.suppress(openai.OpenAIError):
            await self._client.with_options(max_retries=0).files.delete(file_id)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise wrong_key(self._role, error.status_code, self._has_key) from None
        except (openai.NotFoundError, AttributeError) as error:  # of a page of HTML the client makes a string
            raise NotThere(f"the {self._role} has no Batch API at this address ({first_line(error)[:80]})") from None
        except (json.JSONDecodeError, LookupError) as error:
            raise ServerUnavailable(f"a file of answers that is not of the protocol ({first_line(error)})") from None
        except openai.APIStatusError as error:
            if is_unpaid(error.status_code, error.code):
                raise OutOfMoney(self._role, error.status_code) from None
            if not may_pass(error.status_code):
                raise ServerMisconfigured(f"the {self._role} refuses the batch ({first_line(error)[:200]})") from None
            raise ServerUnavailable(f"no Batch API now ({first_line(error)[:200]})") from None
        except openai.APIConnectionError as error:
            message = f"no Batch API now ({first_line(error)[:200]})"
            raise ServerUnavailable(message, unreachable=True) from None


def _reply(line: dict[str, Any]) -> Reply:
    response = line.get("response")
    if not isinstance(response, dict):  # null, where it was never sent
        return Reply(line["custom_id"], 0, {})
    body = response.get("body") or {}
    # Of a server behind another one it may be a page.
    body = body if isinstance(body, dict) else {"error": {"message": str(body)}}
    return Reply(line["custom_id"], int(response.get("status_code") or 0), body)
