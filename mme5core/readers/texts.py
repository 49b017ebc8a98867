"""Texts of a corpus as they can be written: whatever a cell or a file's name holds."""

from __future__ import annotations

from typing import Any


def writable(text: str) -> str:
    """The text, with characters that UTF-8 cannot encode (lone surrogates) written out as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_text(entry: Any) -> str:
    """A cell as text; bytes as UTF-8, with escapes for what is none."""
    return entry.decode("utf-8", "backslashreplace") if isinstance(entry, bytes) else writable(str(entry))
