"""How a job ends: exit code, reason and counters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mme5core.errors import BAD_INPUT, DONE, FAILED, RESUMABLE

__all__ = ["BAD_INPUT", "DONE", "FAILED", "RESUMABLE", "STOPPED", "Outcome", "Stopped"]

STOPPED = "stopped; the same command goes on where this one ended"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: its exit code, why in a few words, its counters, and what it wrote if not `output`."""

    counters: dict[str, Any] = field(default_factory=dict)
    code: int = DONE
    reason: str = "done"
    output: str = ""


class Stopped(BaseException):
    """SIGTERM or Ctrl-C: what is done is kept."""
