"""What an error reply of a server means, by its status, its body and what came before it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import openai

from mme5core.asking.failures import is_unpaid, may_pass
from mme5core.asking.request import MAX_TOKENS
from mme5core.asking.retry_after import retry_after_s
from mme5core.asking.server_words import LONGEST, body_of, error_codes, server_words, status_within, whole_words

# Of a 403: the picture or the text is refused, not the key.
_OF_THE_CONTENT = re.compile(r"moderat|flagged|content.?polic|safety|inappropriate|prohibited content", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """One error of a server, with status 4xx or 5xx or inside a 200.

    Args:
        status: None: an error inside a 200 that names none.
        words: the server's, in a line, without the key; `whole_words` are uncut.
        wait_s: how long the server asks to wait; None: it does not.
        is_unpaid: the account must be paid into first.
        is_of_the_limit: it names the limit of tokens as its parameter, or calls a parameter unsupported.
    """

    status: int | None
    words: str
    whole_words: str
    wait_s: float | None
    is_unpaid: bool
    is_of_the_limit: bool = False

    @classmethod
    def of(cls, error: openai.APIStatusError, key: str | None) -> ErrorReply:
        body = body_of(error.response.content, key)
        headers = {name.lower(): text for name, text in error.response.headers.items()}
        return cls._read(error.status_code, body, key, retry_after_s(headers, body))

    @classmethod
    def inside(cls, body: Any, key: str | None) -> ErrorReply:
        """Of an error that came with status 200, or in a line of a batch."""
        return cls._read(status_within(body), body, key, retry_after_s({}, body))

    @classmethod
    def of_line(cls, status: int, body: Any) -> ErrorReply:
        """Of one request of a batch; the key is blanked in the file already."""
        return cls._read(status, body, None, None)

    @classmethod
    def _read(cls, status: int | None, body: Any, key: str | None, wait_s: float | None) -> ErrorReply:
        error = body.get("error") if isinstance(body, dict) else None
        is_of_the_limit = isinstance(error, dict) and (
            error.get("param") == MAX_TOKENS or error.get("code") == "unsupported_parameter"
        )
        return cls(
            status,
            server_words(body, key),
            whole_words(body, key),
            wait_s,
            is_unpaid(status or 0, error_codes(body)),
            is_of_the_limit,
        )

    @property
    def line(self) -> str:
        """Status and words, as the log and the quarantine have them."""
        return f"{self.status}: Error code: {self.status}" + (f" - {self.words[:LONGEST]}" if self.words else "")

    def may_pass(self, *, has_answer: bool) -> bool:
        """Whether the same request may be answered another time.

        Args:
            has_answer: the server has answered before. A 404 is then no missing model, but passes.
        """
        if self.status is None or may_pass(self.status):
            return True
        return self.status == 404 and has_answer

    def is_of_the_key(self, *, has_answer: bool) -> bool:
        """Whether the key is refused; after a first answer a 403 concerns its request, as one of moderation does."""
        if self.status == 401:
            return True
        return self.status == 403 and not has_answer and not _OF_THE_CONTENT.search(self.whole_words)
