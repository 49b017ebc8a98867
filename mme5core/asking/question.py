"""What `asking` knows of a use of an MLLM: how a record becomes a request, and an answer a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mme5core.asking.request import Request
from mme5core.errors import first_line
from mme5core.types import Rejected

Record = dict[str, Any]
"""What is asked about: a row of the plan, as its file holds it."""

Row = Any
"""What an answer becomes."""


@dataclass(frozen=True, slots=True)
class Retry:
    """An answer that says nothing of the record, so that it must be asked again: a cut stream, say."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unsuitable:
    """An answer that shows that this server cannot answer such questions: nothing more must be asked and paid for."""

    reason: str


Verdict = Sequence[Row] | Rejected | Retry | Unsuitable


class Question(Protocol):
    """A use of an MLLM, as one file: synthesis, judging, captions. It travels to the workers."""

    def request(self, record: Record) -> Request:
        """The request for a record. Runs in a thread, so it may read pictures from afar.

        Raises:
            BadImage: a picture cannot be shown; the record is refused.
            OSError: a file cannot be read; the job stops, naming it.
        """
        ...

    def verdict(self, answer: dict[str, Any], record: Record) -> Verdict:
        """What an answer comes to: rows, a refusal with its reason, or that it must be asked again.

        A function of its arguments alone: it runs when the answer comes and again when the rows are written.
        What it raises refuses the record as `unreadable_answer` (`verdict_of`).

        Args:
            answer: as the log keeps it (`Answer.record`): "text", "finish_reason", "model", ...
        """
        ...


def verdict_of(question: Question, answer: dict[str, Any], record: Record) -> Verdict:
    """The question's verdict; an answer that it fails on refuses its record, and does not end the job."""
    try:
        return question.verdict(answer, record)
    except Exception as error:
        return Rejected(str(record.get("id", "")), "unreadable_answer", first_line(error))


class Records(Protocol):
    """Records in numbered files, numbered over all of them from 0; travels to the workers."""

    @property
    def starts(self) -> np.ndarray:
        """int64 [files + 1]: the number of each file's first record, and their count at the end."""
        ...

    def rows(self, file: int) -> Sequence[Record]:
        """The records of one file."""
        ...
