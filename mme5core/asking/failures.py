"""Why a request got no answer, and what that means for those after it.

Messages call the server by its role: "the teacher", "the judge".
"""

from __future__ import annotations

from collections.abc import Collection

from mme5core.asking.token_usage import Tokens

# What OpenAI says, with 429, 400 or of a whole batch, of an account that must be paid into.
OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


class RequestFailed(Exception):
    """A request without an answer.

    Attributes:
        calls: what was sent for it.
        tokens: what it was billed for all the same.
        words: the server's own, without the key; empty where it said nothing, or where the message holds them.
    """

    def __init__(self, message: str, calls: int = 0, *, words: str = "", tokens: Tokens = Tokens()) -> None:  # noqa: B008  frozen
        super().__init__(message)
        self.calls, self.words, self.tokens = calls, words, tokens

    @property
    def detail(self) -> str:
        """The message with the server's words."""
        return f"{self}: {self.words}" if self.words else str(self)


class RequestRejected(RequestFailed):
    """The server will never answer this request (400): its record is refused."""


class AnswerUnreadable(RequestFailed):
    """The server has answered, and probably billed it, but no answer can be read in the reply."""


class ServerUnavailable(RequestFailed):
    """No answer this time (429, 5xx, timeout, connection): the record is left for the next run.

    `unreachable` where nothing answered at all; `status` is the last HTTP status, where there was one.
    """

    def __init__(
        self,
        message: str,
        calls: int = 0,
        *,
        unreachable: bool = False,
        status: int | None = None,
        words: str = "",
        tokens: Tokens = Tokens(),  # noqa: B008  frozen
    ) -> None:
        super().__init__(message, calls, words=words, tokens=tokens)
        self.unreachable, self.status = unreachable, status


class OutOfMoney(ServerUnavailable):
    """The account is empty: nothing is answered until somebody pays in."""

    def __init__(self, role: str, status_code: int, calls: int = 0, *, words: str = "") -> None:
        super().__init__(f"the {role}'s account has no money left ({status_code})", calls, words=words)


class ServerMisconfigured(RequestFailed):
    """No request can succeed (wrong key, wrong model, not an API): the job stops and says so."""


class NotThere(ServerMisconfigured):
    """The server knows no such thing: no Batch API, or not this batch."""


class BudgetSpent(RequestFailed):
    """Another call is not paid for."""

    def __init__(self, calls: int = 0) -> None:
        super().__init__("the budget is spent", calls)


def wrong_key(role: str, status_code: int, has_key: bool, calls: int = 0, *, words: str = "") -> ServerMisconfigured:
    """What to say of a 401 or 403."""
    what = "refused the key in OPENAI_API_KEY" if has_key else "wants a key, and OPENAI_API_KEY is not set"
    return ServerMisconfigured(f"the {role} {what} ({status_code})", calls, words=words)


def may_pass(status_code: int) -> bool:
    """Whether the same request may be answered another time."""
    return status_code in (408, 409, 425, 429) or status_code >= 500


def is_unpaid(status_code: int, codes: Collection[str | int]) -> bool:
    """Whether an error, by its HTTP status and the codes in its body, says that the account must be paid into first."""
    return status_code == 402 or any(code in OUT_OF_MONEY for code in codes)
