"""Errors as people read them: one line each, and whose fault it is."""

from __future__ import annotations

# How work ends; also the exit codes of the jobs. RESUMABLE: a limit that the user set, or failures that may pass.
DONE, FAILED, BAD_INPUT, RESUMABLE = 0, 1, 2, 3


class InputError(ValueError):
    """An input or a setting that cannot be used; the message is one line for people."""


class WorkFailed(RuntimeError):
    """Work that failed for a reason that a person can act on; the message is one line."""


class WorkPending(RuntimeError):
    """Work that could not be ended now, and that the same command may end later; the message is one line."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of one without message its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
