"""What a server says of an error, whatever the shape of its body, without the key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

LONGEST = 200
LEAST_SECRET = 8  # characters; a shorter key is a stand-in, such as "none", and a common word
BLANK = "[key]"

# Where servers put their words: OpenAI, FastAPI, Ollama, Gemini, OpenRouter, problem+json and others.
_PLACES = ("error", "errors", "message", "detail", "error_message", "error_description", "msg", "title")
_MARKUP = re.compile(r"<(script|style|head)\b.*?</\1>|<[^>]{0,500}>", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL | re.IGNORECASE)


def without_key(text: str, key: str | None) -> str:
    """The text with the key blanked.

    >>> without_key("no access for sk-0123456789", "sk-0123456789")
    'no access for [key]'
    """
    secret = (key or "").strip()
    return text.replace(secret, BLANK) if len(secret) >= LEAST_SECRET else text


def body_of(content: bytes | str, key: str | None) -> Any:
    """A reply's body: JSON where it is, whatever its content type says, else its text. The key is blanked in it."""
    text = content.decode("utf-8-sig", errors="replace") if isinstance(content, bytes) else content
    text = without_key(text, key)
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text


def server_words(body: Any, key: str | None = None) -> str:
    """The server's words in one line of at most `LONGEST` characters; empty where it says nothing.

    >>> server_words({"detail": "no such model"}), server_words([{"error": {"code": 400, "message": "wrong key"}}])
    ('no such model', 'wrong key')
    >>> server_words("<html><title>502 Bad Gateway</title><body>nginx</body></html>")
    '502 Bad Gateway'
    """
    return " ".join(whole_words(body, key).split())[:LONGEST]


def whole_words(body: Any, key: str | None = None) -> str:
    """As `server_words`, uncut."""
    words = list(dict.fromkeys(text for text in _words(body, 0) if text.strip()))
    return without_key("; ".join(words[:3]), key)


def error_codes(body: Any) -> tuple[str | int, ...]:
    """The names and numbers that a body gives its error, as `insufficient_quota` or 429.

    >>> error_codes({"error": {"code": 429, "type": "rate_limit"}}), error_codes({"error": "full"})
    ((429, 'rate_limit'), ())
    """
    codes: list[str | int] = []
    for part in body if isinstance(body, list) else (body,):
        error = part.get("error", part) if isinstance(part, dict) else None
        if isinstance(error, dict):
            named = (error.get(name) for name in ("code", "status", "type"))
            codes += [code for code in named if isinstance(code, str | int) and not isinstance(code, bool)]
    return tuple(codes)


def status_within(body: Any) -> int | None:
    """The HTTP status that an error in a body names, if it names one."""
    statuses = (int(code) for code in error_codes(body) if str(code).isascii() and str(code).isdigit())
    return next((status for status in statuses if 400 <= status <= 599), None)


def _words(body: Any, depth: int) -> Iterator[str]:
    if isinstance(body, str):
        yield _plain(body)
    elif isinstance(body, list) and depth < 6:
        for part in body[:3]:
            yield from _words(part, depth + 1)
    elif isinstance(body, dict) and depth < 6:
        places = [name for name in _PLACES if body.get(name)]
        # A gateway wraps what the server behind it said.
        metadata = body.get("metadata")
        raw = metadata.get("raw") if isinstance(metadata, dict) else None
        for name in places:
            yield from _words(body[name], depth + 1)
        if raw:
            yield from _words(raw, depth + 1)
        elif not places and depth:
            yield json.dumps(body, ensure_ascii=False, default=str)


def _plain(text: str) -> str:
    """Text without markup: of a page its title, or what can be read."""
    if "<" not in text:
        return text
    title = _TITLE.search(text[:100_000])
    return (title[1] if title else _MARKUP.sub(" ", text[:100_000])).strip()
