"""The nearest known name to one that was mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint to put behind a message.

    >>> nearest("sampels", ["samples", "seed"]), nearest("xyz", ["samples", "seed"])
    ("; did you mean 'samples'?", '; known: samples, seed')
    """
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known: {', '.join(known)}"
