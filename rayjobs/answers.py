"""What the teacher has answered, each answer durable as it comes: what a killed run leaves to the next.

A file per file of the plan and worker, a line per answer, appended. Before the answer itself, which is JSON, stands
what must be known of it without reading it: the number of its planned sample, its status, and what it took.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import RawIOBase
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mme5core.synthesis.rates import Usage
from rayjobs.external import new_array

ANSWERED, REJECTED, FAILED = "answered", "rejected", "failed"
"""An answer; the server will never answer; it has not, this time (kept for what it cost)."""

OPEN_FILES, KEY_BYTES = 64, 16
_SHIFT = 40  # a place is the number of the file x 2^40 + the offset of the line in it


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: `key` names the request by its content, `value` is the answer or why there is none."""

    number: int
    status: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    key: str
    value: dict[str, Any]


class AnswerWriter:
    """Appends to a file of its own: one worker's answers to a file of the plan."""

    def __init__(self, folder: Path, plan_file: int, worker: str) -> None:
        self._path = folder / f"{plan_file:06d}-{worker}.answers"
        self._file: RawIOBase | None = None
        self._has_unsynced = False

    def close(self) -> None:
        """What is written after it opens the file again."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file, self._has_unsynced = None, False

    def unsynced(self) -> int | None:
        """A descriptor of the file, for `output.sync`, where something was written since the last one."""
        if self._file is None or not self._has_unsynced:
            return None
        self._has_unsynced = False
        return os.dup(self._file.fileno())

    def write(self, entry: Entry) -> None:
        """One write, so that a kill leaves whole lines and at most one broken one, the last.

        Raises:
            OSError: the disk is full.
        """
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        took = f"{entry.calls}\t{entry.prompt_tokens}\t{entry.completion_tokens}\t{entry.usd!r}"
        head = f"{entry.number}\t{entry.status}\t{took}\t{entry.key}"
        line = f"{head}\t{json.dumps(entry.value, ensure_ascii=False)}\n".encode(errors="backslashreplace")
        start = self._file.tell()
        self._has_unsynced = True
        if self._file.write(line) != len(line):
            os.ftruncate(self._file.fileno(), start)
            raise OSError(28, "No space left on device", str(self._path))


def settled(folder: Path, plan_file: int) -> set[int]:
    """The planned samples of a file of the plan that have an answer, or never will, whoever asked for them."""
    heads = (_Head.of(line) for file in folder.glob(f"{plan_file:06d}-*.answers") for _, line in _lines(file))
    return {head.number for head in heads if head.is_settled}


def so_far(folder: Path) -> tuple[int, Usage]:
    """How many planned samples have an answer, or never will, and what all requests took."""
    num_settled, usage = 0, Usage()
    for _, files in groupby(sorted(folder.glob("*.answers")), key=lambda file: file.name.partition("-")[0]):
        numbers = set()
        for head in (_Head.of(line) for file in files for _, line in _lines(file)):
            usage += head.usage
            if head.is_settled:
                numbers.add(head.number)
        num_settled += len(numbers)
    return num_settled, usage


def used_by_worker(folder: Path) -> dict[str, Usage]:
    """What the requests of each worker took."""
    found: dict[str, Usage] = {}
    for file in folder.glob("*.answers"):
        usages = (_Head.of(line).usage for _, line in _lines(file))
        found[_worker_of(file)] = sum(usages, found.get(_worker_of(file), Usage()))
    return found


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
        self.used_by_worker: dict[str, Usage] = {}
        mapped = new_array(places, num_plans)
        self.places = mapped[:num_plans]
        self.places[:] = -1
        for number, file in enumerate(self.files):
            used = self.used_by_worker.get(_worker_of(file), Usage())
            for offset, line in _lines(file):
                head = _Head.of(line)
                used += head.usage
                # Of two answers to a sample (asked for by one who was thought dead) the first here counts.
                if head.is_settled and head.number < len(self.places) and self.places[head.number] < 0:
                    self.places[head.number] = (number << _SHIFT) + offset
            self.used_by_worker[_worker_of(file)] = used
        mapped.flush()

    @property
    def usage(self) -> Usage:
        """What all requests together took."""
        return sum(self.used_by_worker.values(), Usage())

    @property
    def num_done(self) -> int:
        return int((self.places >= 0).sum())

    def digest(self, start: int, stop: int) -> str:
        """Equal where the planned samples from `start` to `stop` have the same answers."""
        places = self.places[start:stop]
        numbers, file_of = np.unique(places >> _SHIFT, return_inverse=True)
        names = [self.files[number].name for number in numbers.tolist() if number >= 0]
        digest = hashlib.sha256("\n".join(names).encode())
        for part in (file_of.astype(np.int64), places & ((1 << _SHIFT) - 1)):
            digest.update(part.tobytes())
        return digest.hexdigest()[:32]

    def reader(self) -> AnswerReader:
        return AnswerReader(self.files, self._places_file)


class AnswerCache:
    """Answers of other runs by what was asked, in a folder of their own.

    Memory holds 24 bytes of each.

    Args:
        without: names of files that are left out: what a run has copied here itself is in its own log.
    """

    def __init__(self, folder: Path, *, without: Collection[str] = ()) -> None:
        # pathlib's glob takes hidden files too: those that another job is copying.
        self._files = sorted(
            file for file in folder.glob("*.answers") if not file.name.startswith(".") and file.name not in without
        )
        keys, places = bytearray(), array("q")
        for number, file in enumerate(self._files):
            for offset, line in _lines(file):
                try:
                    head = _Head.of(line)
                    key = bytes.fromhex(head.key) if head.status == ANSWERED else b""
                except ValueError:  # not ours, or damaged
                    continue
                if len(key) == KEY_BYTES:
                    keys += key
                    places.append((number << _SHIFT) + offset)
        halves = np.frombuffer(keys, ">u8").reshape(-1, 2)
        order = np.argsort(halves[:, 0], kind="stable")
        # Each in memory as a search wants it: of anything else numpy would make a copy for every search.
        self._first, self._second = (halves[order, half].astype(np.uint64) for half in (0, 1))
        self._places = np.frombuffer(places, np.int64)[order]

    def __len__(self) -> int:
        return len(self._places)

    @staticmethod
    def keep(files: Sequence[Path], folder: Path) -> None:
        """Copy the answers that were paid for to where other runs find them, from files that have changed since.

        Raises:
            OSError: they cannot be written there.
        """
        for file in files:
            copy, written = folder / file.name, file.stat().st_mtime_ns
            if copy.is_file() and copy.stat().st_mtime_ns == written:
                continue
            temporary = folder / f".{file.name}"
            try:
                with temporary.open("wb") as stream:
                    stream.writelines(line for _, line in _lines(file) if _Head.of(line).usage.num_answered)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.utime(temporary, ns=(written, written))
                temporary.rename(copy)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

    def get(self, key: str) -> Entry | None:
        """The answer to a request of this key, if there is one."""
        first, second = (np.uint64(int(half, 16)) for half in (key[:16], key[16:]))
        for n in range(np.searchsorted(self._first, first), np.searchsorted(self._first, first, "right")):
            if self._second[n] == second:
                place = int(self._places[n])
                try:
                    with self._files[place >> _SHIFT].open("rb") as stream:
                        stream.seek(place & ((1 << _SHIFT) - 1))
                        return _entry_of(stream.readline())
                except (OSError, ValueError):  # gone, or damaged
                    continue
        return None


class _Head(NamedTuple):
    """What stands before the answer in its line."""

    number: int
    status: str
    usage: Usage
    key: str

    @classmethod
    def of(cls, line: bytes) -> _Head:
        number, status, calls, prompt_tokens, completion_tokens, usd, key, _ = line.split(b"\t", 7)
        is_paid = status == ANSWERED.encode() and int(calls) > 0  # else it came out of a cache
        usage = Usage(int(calls), int(is_paid), int(prompt_tokens), int(completion_tokens), float(usd))
        return cls(int(number), status.decode(), usage, key.decode())

    @property
    def is_settled(self) -> bool:
        return self.status != FAILED


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every whole line."""
    offset = 0
    with file.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):  # else the kill came in the middle of it
                yield offset, line
            offset += len(line)


def _worker_of(file: Path) -> str:
    return file.stem.partition("-")[2]


def _entry_of(line: bytes) -> Entry:
    number, status, used, key = _Head.of(line)
    value = json.loads(line.decode().split("\t", 7)[7])
    return Entry(number, status, used.calls, used.prompt_tokens, used.completion_tokens, used.usd, key, value)
