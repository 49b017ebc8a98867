"""What the teacher has answered, each answer durable as it comes: what a killed run leaves to the next.

A file per worker and run, a line per answer, appended. Before the answer itself, which is JSON, stands what must be
known of it without reading it: the number of its planned sample, its status, and what it took.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

ANSWERED, REJECTED, FAILED = "answered", "rejected", "failed"
"""An answer; the server will never answer; it has not, this time (kept for what it cost)."""

OPEN_FILES = 64
_SHIFT = 40  # a place is the number of the file x 2^40 + the offset of the line in it


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: `key` names the request by its content, `value` is the answer or why there is none."""

    number: int
    status: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    key: str
    value: dict[str, Any]


class AnswerWriter:
    """Appends to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / f"{uuid.uuid4().hex}.answers").open("ab", buffering=0)

    def write(self, entry: Entry) -> None:
        """One write, so that a kill leaves whole lines and at most one broken one, the last.

        Raises:
            OSError: the disk is full.
        """
        head = f"{entry.number}\t{entry.status}\t{entry.calls}\t{entry.prompt_tokens}\t{entry.completion_tokens}"
        line = f"{head}\t{entry.key}\t{json.dumps(entry.value, ensure_ascii=False)}\n".encode(errors="backslashreplace")
        start = self._file.tell()
        if self._file.write(line) != len(line):
            os.ftruncate(self._file.fileno(), start)
            raise OSError(28, "No space left on device", self._file.name)


@dataclass(slots=True)
class Usage:
    """What all answers together took."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_answered: int = 0


class AnswerReader:
    """Answers by the number of their planned sample; travels to the tasks.

    Args:
        places: the file of `AnswerLog`, with the place of each answer.
    """

    def __init__(self, files: Sequence[Path], places: Path) -> None:
        self._files, self._places_file = list(files), places
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()

    def __reduce__(self) -> Any:
        return AnswerReader, (self._files, self._places_file)

    def entries(self, start: int, stop: int) -> list[Entry | None]:
        """Of the planned samples from `start` to `stop`: the answer, or None where there is none yet."""
        places = np.fromfile(self._places_file, np.int64, stop - start, offset=8 * start)
        return [None if place < 0 else _entry_of(self._line_at(place)) for place in places.tolist()]

    def _line_at(self, place: int) -> bytes:
        file, offset = place >> _SHIFT, place & ((1 << _SHIFT) - 1)
        if file not in self._open:
            self._open[file] = self._files[file].open("rb")
        self._open.move_to_end(file)
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        stream = self._open[file]
        stream.seek(offset)
        return stream.readline()


class AnswerLog:
    """What lies in a folder of answers; memory holds none of them.

    Args:
        num_plans: planned samples, numbered from 0.
        places: the file that takes the place of each one's answer, int64, -1 where there is none.
    """

    def __init__(self, folder: Path, num_plans: int, places: Path) -> None:
        self.folder, self._places_file = folder, places
        self.files = sorted(folder.glob("*.answers"))
        self.usage = Usage()
        mapped = np.memmap(places, np.int64, "w+", shape=(max(1, num_plans),))
        self.places = mapped[:num_plans]
        self.places[:] = -1
        for number, file in enumerate(self.files):
            for offset, line in _lines(file):
                self._count(line, (number << _SHIFT) + offset)
        mapped.flush()

    @property
    def num_done(self) -> int:
        return int((self.places >= 0).sum())

    def reader(self) -> AnswerReader:
        return AnswerReader(self.files, self._places_file)

    def _count(self, line: bytes, place: int) -> None:
        number, status, calls, prompt_tokens, completion_tokens, _ = line.split(b"\t", 5)
        self.usage.calls += int(calls)
        self.usage.prompt_tokens += int(prompt_tokens)
        self.usage.completion_tokens += int(completion_tokens)
        self.usage.num_answered += status == ANSWERED.encode()
        # A sample that was asked for twice (a task that ran again) has the answer that comes first here.
        if status != FAILED.encode() and int(number) < len(self.places) and self.places[int(number)] < 0:
            self.places[int(number)] = place


class AnswerCache:
    """Answers of other runs by what was asked, in a folder of their own.

    Memory holds 24 bytes of each.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.answers"))
        keys, places = [], []
        for number, file in enumerate(self._files):
            for offset, line in _lines(file):
                _, status, _, _, _, key, _ = line.split(b"\t", 6)
                if status == ANSWERED.encode():
                    keys.append(bytes.fromhex(key.decode()))
                    places.append((number << _SHIFT) + offset)
        found = np.array(keys, "V16") if keys else np.zeros(0, "V16")
        order = np.argsort(found.view(">u8").reshape(-1, 2)[:, 0], kind="stable")
        self._keys, self._places = found[order], np.array(places, np.int64)[order]
        self._heads = self._keys.view(">u8").reshape(-1, 2)[:, 0]

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: str) -> Entry | None:
        """The answer to a request of this key, if there is one."""
        wanted = bytes.fromhex(key)
        head = int.from_bytes(wanted[:8])
        start, stop = (int(np.searchsorted(self._heads, head, side)) for side in ("left", "right"))  # type: ignore[call-overload]
        for n in range(start, stop):
            if self._keys[n].tobytes() == wanted:
                place = int(self._places[n])
                with self._files[place >> _SHIFT].open("rb") as stream:
                    stream.seek(place & ((1 << _SHIFT) - 1))
                    return _entry_of(stream.readline())
        return None


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every whole line."""
    offset = 0
    with file.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):  # else the kill came in the middle of it
                yield offset, line
            offset += len(line)


def _entry_of(line: bytes) -> Entry:
    number, status, calls, prompt_tokens, completion_tokens, key, value = line.decode().split("\t", 6)
    return Entry(int(number), status, int(calls), int(prompt_tokens), int(completion_tokens), key, json.loads(value))
