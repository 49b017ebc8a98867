"""Writes into the log what came of each record, counts it, and tells the worker's patience."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from mme5core.asking.answer import Answer
from mme5core.asking.answer_log import ANSWERED, FAILED, REJECTED, UNREADABLE, Entry
from mme5core.asking.failures import RequestFailed
from mme5core.asking.log_file import LogFile, OpenLogFiles
from mme5core.asking.patience import Patience
from mme5core.asking.pricing import Price
from mme5core.asking.question import Question, Retry, Unsuitable, verdict_of
from mme5core.asking.request import SEED, TEMPERATURE
from mme5core.asking.token_usage import Tokens
from mme5core.errors import BAD_INPUT
from mme5core.images import BadImage
from mme5core.types import Rejected

KEPT, REFUSED, PENDING = "kept", "refused", "pending"
"""What a record has come to."""
AWAY = frozenset(("missing_image", "unreachable_image"))
"""Of a picture that was there when the corpus was read: its disk or server may be back for the next run."""
AGAIN = "again"
"""Its answer says nothing of the record: ask once more."""

NOTHING = Tokens()
_OMITTABLE = re.compile(rf"\b({SEED}|{TEMPERATURE})\b")


class Recorder:
    """
    Args:
        counts: of records by what they came to; shared with the gate, which reports them.
        on_note: takes what people should know and what stops nothing.
        refuses_away: refuse records whose picture is away, rather than leave them to the next run.
    """

    def __init__(
        self,
        question: Question,
        price: Price | None,
        patience: Patience,
        files: OpenLogFiles,
        counts: Counter[str],
        on_note: Callable[[str], None] = lambda text: None,
        *,
        refuses_away: bool = False,
    ) -> None:
        self._question, self._price, self._patience = question, price, patience
        self._files, self.counts = files, counts
        self._held: list[tuple[LogFile, Entry]] = []  # rejections since the last answer
        self._rejects_all = False
        self._on_note, self._refuses_away, self._has_away = on_note, refuses_away, False

    def answered(self, file: LogFile, number: int, key: str, answer: Answer, *, prompt_sha256: str, seed: int) -> str:
        """Write an answer; returns what the record came to."""
        line = answer.record(prompt_sha256, seed, self._price)
        verdict = verdict_of(self._question, line, file.record(number))
        if isinstance(verdict, Unsuitable) and self._patience.has_row:  # of this record alone
            verdict = Rejected(str(file.record(number).get("id", "")), "unsuitable_answer", verdict.reason)
        tokens = answer.prompt_tokens, answer.completion_tokens
        entry = Entry(number, ANSWERED, answer.calls, *tokens, line["usd"] or 0.0, key, line)
        if isinstance(verdict, Retry | Unsuitable):
            entry = replace(entry, status=FAILED, answer={"reason": "asked_again", "detail": verdict.reason})
        file.write(entry)
        self._patience.answered()
        self.settle_rejections()
        if isinstance(verdict, Retry):
            self._patience.asked_again(verdict.reason)
            return AGAIN
        if isinstance(verdict, Unsuitable):
            self._patience.halt(
                BAD_INPUT, f"{verdict.reason}: {self._patience.role}.base_url={self._patience.base_url}"
            )
            return PENDING
        refused = verdict if isinstance(verdict, Rejected) else None
        self._patience.judged(refused)
        return KEPT if refused is None else REFUSED

    def cached(self, file: LogFile, number: int, key: str, known: Entry) -> str | None:
        """Write an answer that another run has paid for; None where it would have to be asked again."""
        line = known.answer | {"usd": None if self._price is None else 0.0}
        verdict = verdict_of(self._question, line, file.record(number))
        if isinstance(verdict, Retry | Unsuitable):
            return None
        file.write(Entry(number, ANSWERED, 0, 0, 0, 0.0, key, line))
        if isinstance(verdict, Rejected):
            return REFUSED
        self._patience.judged(None)
        return KEPT

    def unusable(self, file: LogFile, number: int, error: BadImage) -> str:
        """Refuse a record whose picture cannot be shown, though its header was good; one that is away is waited for."""
        if error.reason in AWAY and not self._refuses_away:
            if not self._has_away:
                self._on_note(f"{error}: its samples are left to the next run; unreachable=refuse refuses them")
            self._has_away = True
            return PENDING
        line = {"reason": error.reason, "detail": str(error)}
        file.write(Entry(number, REJECTED, 0, 0, 0, 0.0, "-", line))
        return REFUSED

    def rejected(self, file: LogFile, number: int, key: str, detail: str, calls: int, tokens: Tokens = NOTHING) -> str:
        """Hold a rejection back until the next answer: many without one are the server's or the recipe's fault."""
        line = {"reason": f"{self._patience.role}_rejected", "detail": detail}
        self._held.append((file, self._entry(number, REJECTED, calls, tokens, key, line)))
        if len(self._held) > self._patience.most_rejections:
            self.settle_rejections(all_are=True)
        return PENDING

    def settle_rejections(self, *, all_are: bool = False) -> None:
        """Write what was held back: refused, or, where the server rejects all, left to the next run."""
        if not self._held:
            return
        self._rejects_all |= all_are or not self._patience.has_answer
        if self._rejects_all:
            detail = self._held[0][1].answer["detail"]
            hint = _hint(detail, self._patience.role)
            self._patience.halt(BAD_INPUT, f"the {self._patience.role} rejects every request ({detail}){hint}")
        held, self._held = self._held, []
        for file, entry in held:
            if self._rejects_all:
                self._note(file, replace(entry, status=FAILED))
                continue
            file.write(entry)
            self.counts.update({REFUSED: 1, PENDING: -1})
        for file in {file for file, _ in held}:
            if file not in self._files:
                file.close()  # it was closed before, and these lines opened it again

    def failed(self, file: LogFile, number: int, error: RequestFailed, *, is_form_known: bool) -> None:
        """Note what was paid for without an answer, and what the failure means for the requests after it."""
        self.unanswered(file, number, error.detail, error.calls, error.tokens)
        self._patience.failed(error, is_form_known=is_form_known)

    def unanswered(self, file: LogFile, number: int, detail: str, calls: int, tokens: Tokens, *, key: str = "-") -> str:
        """Note what was paid for without an answer; the record is left to the next run."""
        line = {"reason": f"{self._patience.role}_unavailable", "detail": detail}
        self._note(file, self._entry(number, FAILED, calls, tokens, key, line))
        return PENDING

    def unreadable(self, file: LogFile, number: int, detail: str, calls: int, tokens: Tokens, *, key: str = "-") -> str:
        """An answer that cannot be read is asked for once more, in this run or the next; the second one settles."""
        line = {"reason": UNREADABLE, "detail": detail}
        if file.is_second_unreadable(number):
            file.write(self._entry(number, REJECTED, calls, tokens, key, line))
            self._patience.judged(Rejected("", UNREADABLE, detail))
            return REFUSED
        self._note(file, self._entry(number, FAILED, calls, tokens, key, line))
        return AGAIN

    def _entry(self, number: int, status: str, calls: int, tokens: Tokens, key: str, line: dict[str, str]) -> Entry:
        usd = 0.0 if self._price is None else self._price.of(tokens.prompt, tokens.completion)
        return Entry(number, status, calls, tokens.prompt, tokens.completion, usd, key, line)

    def _note(self, file: LogFile, entry: Entry) -> None:
        if entry.calls:
            file.write(entry)


def _hint(detail: str, role: str) -> str:
    """The way out where a server names a field of ours that it does not take."""
    match = _OMITTABLE.search(detail)
    return f"; {role}.omit=[{match[1]}] leaves that field out" if match else ""
