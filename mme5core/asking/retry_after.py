"""How long a server asks to wait, in each of the forms in which servers say so."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from mme5core.asking.server_words import whole_words

LONGEST_S = 86_400.0  # a longer one is a mistake
CLOCK_STEP_S = 1.0  # an HTTP date has whole seconds

_UNITS_S = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|milli|[smhd])[a-z]*\s*", re.IGNORECASE)
_IN_WORDS = re.compile(
    r"(?:try again|retry|wait)[^.0-9]{0,30}?((?:\d+(?:\.\d+)?\s*(?:ms|milliseconds?|s|sec(?:ond)?s?|m|min(?:ute)?s?|"
    r"h|hours?|d|days?)\b\s*|\d+(?:\.\d+)?(?:ms|[smhd]))+)",
    re.IGNORECASE,
)
_RESETS = ("requests", "tokens")


def retry_after_s(headers: Mapping[str, str], body: Any, *, now: float | None = None) -> float | None:
    """Seconds to wait before the next request; None where the server does not say.

    Args:
        headers: of the reply, with lower-case names.
        now: Unix time; None: this machine's. A date is held against the server's own clock where it tells it.

    >>> retry_after_s({"retry-after": "2"}, {}), retry_after_s({"retry-after-ms": "1500"}, {})
    (2.0, 1.5)
    >>> retry_after_s({"retry-after": "Fri, 27 Nov 2026 20:00:12 GMT", "date": "Fri, 27 Nov 2026 20:00:00 GMT"}, {})
    13.0
    >>> retry_after_s({}, {"error": {"message": "Rate limit reached. Please try again in 1m2.5s."}})
    62.5
    """
    waits = (
        _seconds(headers.get("retry-after-ms"), unit_s=0.001),
        _seconds(headers.get("retry-after")),
        _until(headers.get("retry-after"), headers.get("date"), now),
        _until_reset(headers),
        _delay_in(body, 0),
        _in_words(body),
    )
    wait_s = next((wait for wait in waits if wait is not None), None)
    return None if wait_s is None else min(LONGEST_S, max(0.0, wait_s))


def _seconds(text: str | None, unit_s: float = 1.0) -> float | None:
    """Of a number or a duration such as `1m30s`."""
    if text is None:
        return None
    try:
        number = float(text)
        return number * unit_s if math.isfinite(number) else None
    except ValueError:
        pass
    if not _DURATION.sub("", text.strip()) and text.strip():
        return sum(float(number) * _UNITS_S[unit.lower()] for number, unit in _DURATION.findall(text))
    return None


def _until(text: str | None, date: str | None, now: float | None) -> float | None:
    if not text:
        return None
    try:
        then = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
    try:
        here = parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        here = time.time() if now is None else now
    return max(0.0, then - here) + CLOCK_STEP_S


def _until_reset(headers: Mapping[str, str]) -> float | None:
    """OpenAI's headers, of the limit that is used up."""
    waits = [
        _seconds(headers.get(f"x-ratelimit-reset-{name}"))
        for name in _RESETS
        if _seconds(headers.get(f"x-ratelimit-remaining-{name}")) == 0
    ]
    known = [wait for wait in waits if wait is not None and wait <= LONGEST_S]
    return max(known, default=None)


def _delay_in(body: Any, depth: int) -> float | None:
    """Google's `retryDelay`, or a `retry_after` in the body."""
    if depth > 6:
        return None
    if isinstance(body, dict):
        for name in ("retryDelay", "retry_delay", "retry_after", "retry_after_seconds"):
            wait_s = _seconds(str(body[name])) if isinstance(body.get(name), str | int | float) else None
            if wait_s is not None:
                return wait_s
    inner = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return next((wait for part in inner if (wait := _delay_in(part, depth + 1)) is not None), None)


def _in_words(body: Any) -> float | None:
    match = _IN_WORDS.search(whole_words(body)[:2000])
    return _seconds(match[1].strip()) if match else None
