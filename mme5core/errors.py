"""Errors as people read them."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message; of one without message its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
