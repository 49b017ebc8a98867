"""When a worker stops asking: the server is away, rejects everything, or gives answers that are of no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mme5core.asking.failures import BudgetSpent, OutOfMoney, RequestFailed, ServerMisconfigured, ServerUnavailable
from mme5core.errors import BAD_INPUT, FAILED, RESUMABLE
from mme5core.types import Rejected

# After so many failures in a row the worker leaves the rest to the next run, instead of waiting through every record.
# Where nothing answers at all, or never has; else as many as there are calls in flight.
UNAVAILABLE_IN_A_ROW = 3
# So many rejections in a row are the fault of the request or the account, not of single records: before any answer, and
# after one.
REJECTED_IN_A_ROW, REJECTED_AFTER_AN_ANSWER = 16, 64
# So many answers in a row of which none can be kept, before a worker's first that can and after one, are the fault of
# the model or a setting, and each is paid for. Of a recipe that keeps one in twenty, one worker in 700 begins so.
USELESS_IN_A_ROW, USELESS_AFTER_A_ROW = 128, 512
# So many answers in a row that say nothing of their records (broken off by the server, say), each of them paid for.
WITHOUT_VERDICT_IN_A_ROW = 64
BUDGET_SPENT = "the budget is spent; raise budget.calls or budget.usd to go on"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the asking ended before every record had its answer; `code` is one of `mme5core.errors`."""

    code: int
    reason: str
    is_budget_spent: bool = False


class Patience:
    """Counts what goes wrong in a row, and stops the worker when it is too much.

    Args:
        role: what messages call the server.
        concurrency: calls in flight.
        has_answer: whether the server has answered an earlier run.
        close: called once asking must stop.

    Attributes:
        stop: set as soon as nothing more shall be asked; the first reason stays.
    """

    def __init__(
        self, *, role: str, base_url: str, concurrency: int, has_answer: bool, close: Callable[[], None]
    ) -> None:
        self.role, self.base_url = role, base_url
        self.stop: Stop | None = None
        self.has_answer = has_answer
        self._concurrency, self._close = concurrency, close
        self._num_unavailable = self._num_without_verdict = 0
        self._has_row = False
        self._useless: Counter[str] = Counter()  # refused answers since the last that gave a row, by reason

    @property
    def most_rejections(self) -> int:
        """Rejections in a row that are still taken for the fault of their records."""
        return (REJECTED_AFTER_AN_ANSWER if self.has_answer else REJECTED_IN_A_ROW) - 1

    @property
    def has_row(self) -> bool:
        """Whether an answer has given rows."""
        return self._has_row

    def halt(self, code: int, reason: str, *, is_budget_spent: bool = False) -> None:
        """Ask for nothing more."""
        self.stop = self.stop or Stop(code, reason, is_budget_spent)
        self._close()

    def halt_on_file(self, error: OSError, folder: Path) -> None:
        """A file cannot be read or written."""
        self.halt(FAILED, f"{error.filename or folder}: {error.strerror or error}")

    def answered(self) -> None:
        self._num_unavailable = 0
        self.has_answer = True

    def failed(self, error: RequestFailed, *, is_form_known: bool) -> None:
        """A request got no answer."""
        if isinstance(error, BudgetSpent):
            self.halt(RESUMABLE, BUDGET_SPENT, is_budget_spent=True)
        elif isinstance(error, ServerMisconfigured):
            self.halt(BAD_INPUT, f"{error}: {self.role}.base_url={self.base_url}{_said(error)}")
        elif isinstance(error, OutOfMoney):
            self.halt(RESUMABLE, f"{error} at {self.base_url}; pay in, then run again{_said(error)}")
        elif isinstance(error, ServerUnavailable):
            self._num_unavailable += 1
            is_hopeless = error.unreachable or not is_form_known
            most = UNAVAILABLE_IN_A_ROW if is_hopeless else max(UNAVAILABLE_IN_A_ROW, self._concurrency)
            if self._num_unavailable >= most:
                self.halt(RESUMABLE, f"{error} at {self.base_url}; run again when it is there{_said(error)}")

    def asked_again(self, reason: str) -> None:
        """An answer said nothing of its record. Each is paid for, so that many in a row are too many."""
        self._num_without_verdict += 1
        if self._num_without_verdict >= WITHOUT_VERDICT_IN_A_ROW:
            self.halt(
                RESUMABLE,
                f"{WITHOUT_VERDICT_IN_A_ROW} answers of the {self.role} in a row were of no use ({reason}) at "
                f"{self.base_url}; run again when it is well",
            )

    def judged(self, refused: Rejected | None) -> None:
        """An answer gave rows (None) or was refused."""
        self._num_without_verdict = 0
        if refused is None:
            self._has_row = True
            self._useless.clear()
            return
        self._useless[refused.reason] += 1
        most = USELESS_AFTER_A_ROW if self._has_row else USELESS_IN_A_ROW
        if self._useless.total() >= most:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self._useless.most_common())
            last = (refused.detail.splitlines() or [""])[0]
            self.halt(
                BAD_INPUT,
                f"of {most} answers in a row none could be kept ({reasons}; the last: {last}): is it the right model, "
                f"is {self.role}.max_answer_tokens enough?",
            )


def _said(error: RequestFailed) -> str:
    return f"; it says: {error.words}" if error.words else ""
