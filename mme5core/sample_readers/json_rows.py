"""Objects of a JSON file, one after the other: a list of them, or one on each line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator

from mme5core.errors import InputError, first_line
from mme5core.sample_readers.sample_format import Row
from mme5core.storage import AnyPath

CHUNK_CHARS = 1 << 20
MAX_ROW_CHARS = 1 << 26
"""A longer object is not waited for."""


def json_rows(file: AnyPath) -> Iterator[Row]:
    """
    Raises:
        InputError: it cannot be read, is no UTF-8 or no JSON, or an entry is no object; naming the entry.
    """
    place = 0
    try:
        for entry in _entries(file):
            if not isinstance(entry, dict):
                raise InputError(f"{file}: entry {place} is a {type(entry).__name__}, not an object")
            yield entry
            place += 1
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: entry {place} cannot be read as JSON ({first_line(error)})") from None


def _entries(file: AnyPath) -> Iterator[object]:
    decoder, text = json.JSONDecoder(), _Text(file)
    is_list = text.skip(" \t\r\n") == "["
    if is_list:
        text.take(1)
        separators = " \t\r\n,"
    else:
        separators = " \t\r\n"
    while (first := text.skip(separators)) and first != "]":
        while True:
            try:
                entry, end = decoder.raw_decode(text.buffer)
                break
            except json.JSONDecodeError:
                if len(text.buffer) > MAX_ROW_CHARS or not text.grow():
                    raise
        text.take(end)
        yield entry
    if is_list:
        if not first:
            raise ValueError("the list has no end: the file is cut")
        text.take(1)
        if text.skip(" \t\r\n"):
            raise ValueError("something follows the list")


class _Text:
    """The characters of a file that are still to be read."""

    def __init__(self, file: AnyPath) -> None:
        self.buffer = ""
        self._stream = codecs.getreader("utf-8-sig")(file.open("rb"))
        self.grow()

    def grow(self) -> bool:
        """Read on, as much as there is already; False at the end."""
        more = self._stream.read(max(CHUNK_CHARS, len(self.buffer)))
        self.buffer += more
        return bool(more)

    def take(self, count: int) -> None:
        self.buffer = self.buffer[count:]

    def skip(self, characters: str) -> str:
        """Pass over some characters; returns the one that follows, or nothing at the end."""
        while True:
            self.buffer = self.buffer.lstrip(characters)
            if self.buffer or not self.grow():
                return self.buffer[:1]
