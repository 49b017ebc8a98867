"""The log of answers: each is durable as soon as it comes, so that a killed run leaves it to the next.

One file per file of records and worker, one line per answer, appended. The answer itself, which is JSON, comes last in
its line. Before it stands what must be known without parsing it: the number of its record, its status, and its cost.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mme5core.asking.rates import Usage
from mme5core.durable import wait_until_seen
from mme5core.tasks import Item, Runner, run_here

ANSWERED, REJECTED, FAILED = "answered", "rejected", "failed"
"""There is an answer; there will never be one; there was none this time (kept for what it cost)."""
UNREADABLE = "unreadable_answer"
"""Why an answer that was paid for settles nothing, or, the second time, refuses its record."""

BYTES_PER_TASK = 1 << 26
PLACE_SHIFT = 40  # a place is the number of the file x 2^40 + the offset of the line in it


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: `key` names the request by its content, `answer` is the answer or why there is none."""

    number: int
    status: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    key: str
    answer: dict[str, Any]


class AnswerWriter:
    """Appends to a file of its own: one worker's answers about one file of records."""

    def __init__(self, folder: Path, plan_file: int, worker: str) -> None:
        self.path = folder / f"{plan_file:06d}-{worker}.answers"
        self._file: RawIOBase | None = None
        self._has_unsynced = False

    def close(self) -> None:
        """What is written after it opens the file again."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file, self._has_unsynced = None, False

    def unsynced(self) -> int | None:
        """A descriptor of the file, for `durable.sync`, if something was written since the last one."""
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
            self._file = self.path.open("ab", buffering=0)
        took = f"{entry.calls}\t{entry.prompt_tokens}\t{entry.completion_tokens}\t{entry.usd!r}"
        head = f"{entry.number}\t{entry.status}\t{took}\t{entry.key}"
        line = f"{head}\t{json.dumps(entry.answer, ensure_ascii=False)}\n".encode(errors="backslashreplace")
        start = self._file.tell()
        self._has_unsynced = True
        if self._file.write(line) != len(line):
            os.ftruncate(self._file.fileno(), start)
            raise OSError(28, "No space left on device", str(self.path))


def log_files(folder: Path) -> dict[int, list[Path]]:
    """The files of the log by the file of records that they are about, each list in the order of the names."""
    files: dict[int, list[Path]] = {}
    for file in sorted(folder.glob("*.answers")):
        files.setdefault(int(file.name.partition("-")[0]), []).append(file)
    return files


def settled(folder: Path, plan_file: int) -> set[int]:
    """The records of a file that have an answer, or never will, whoever asked about them."""
    heads = (Head.of(line) for file in folder.glob(f"{plan_file:06d}-*.answers") for _, line in whole_lines(file))
    return {head.number for head in heads if head.is_settled}


def with_sizes(files: Sequence[Path]) -> list[tuple[str, int]]:
    """(path, bytes) of files of the log, for a task on a node that may see them later."""
    return [(str(file), file.stat().st_size) for file in files]


def when_seen(files: Sequence[tuple[str, int]]) -> list[Path]:
    """The paths, once this node sees as many bytes of each.

    Raises:
        WorkFailed: it never does.
    """
    paths = [Path(name) for name, _ in files]
    if paths:
        wait_until_seen(lambda: all(_size(Path(name)) >= size for name, size in files), paths[0].parent)
    return paths


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


def unreadable(folder: Path, plan_file: int) -> set[int]:
    """The records of a file that were answered in a way that could not be read, whoever asked about them."""
    numbers = set()
    for file in folder.glob(f"{plan_file:06d}-*.answers"):
        for _, line in whole_lines(file):
            head = Head.of(line)
            if not head.is_settled and entry_of(line).answer.get("reason") == UNREADABLE:
                numbers.add(head.number)
    return numbers


def entries_of(files: Sequence[Path]) -> dict[int, Entry]:
    """The settled entries of some files of the log, by the number of their record.

    Of two answers to a record (asked about by a worker that was thought dead) the first in the files' order counts.
    """
    entries: dict[int, Entry] = {}
    for file in files:
        for _, line in whole_lines(file):
            head = Head.of(line)
            if head.is_settled and head.number not in entries:
                entries[head.number] = entry_of(line)
    return entries


@dataclass(frozen=True, slots=True)
class Survey:
    """What a log holds, counted by tasks: memory holds no answer.

    Args:
        num_settled: int64 [files of records], how many records of each have an answer or never will.
        digests: of each file of records that has answers; equal where they are the same.
        used_by_worker: what the requests of each worker took.
    """

    num_settled: np.ndarray
    digests: dict[int, str]
    used_by_worker: dict[str, Usage]

    @property
    def usage(self) -> Usage:
        """What all requests together took."""
        return sum(self.used_by_worker.values(), Usage())

    @classmethod
    def of_folder(cls, folder: Path) -> Survey:
        """Of all files of records that have answers, read here."""
        return cls.of(folder, max(log_files(folder), default=-1) + 1)

    @classmethod
    def of(cls, folder: Path, num_files: int, run: Runner = run_here) -> Survey:
        num_settled = np.zeros(num_files, np.int64)
        digests: dict[int, str] = {}
        used: dict[str, Usage] = {}
        for report in run(SurveyLog(), list(_groups(log_files(folder), num_files))):
            for number, count, digest in report["files"]:
                num_settled[number], digests[number] = count, digest
            for worker, usage in report["used"].items():
                used[worker] = used.get(worker, Usage()) + Usage(*usage)
        return cls(num_settled, digests, used)


@dataclass(frozen=True, slots=True)
class SurveyLog:
    """The task: reads the files of the log that are about some files of records."""

    def __call__(self, item: Item) -> Iterator[Item]:
        files, used = [], dict[str, Usage]()
        for number, names in item["files"]:
            settled_here, sizes = set(), []
            for file in when_seen(names):
                sizes.append([file.name, file.stat().st_size])
                for _, line in whole_lines(file):
                    head = Head.of(line)
                    used[worker_of(file)] = used.get(worker_of(file), Usage()) + head.usage
                    if head.is_settled:
                        settled_here.add(head.number)
            # The files are only appended to: equal sizes are equal contents.
            digest = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:32]
            files.append([number, len(settled_here), digest])
        yield {"files": files, "used": {worker: list(astuple(usage)) for worker, usage in used.items()}}


def _groups(files: dict[int, list[Path]], num_files: int) -> Iterator[Item]:
    """Items of about BYTES_PER_TASK each."""
    group: list[tuple[int, list[tuple[str, int]]]] = []
    num_bytes = 0
    for number, own in files.items():
        if number >= num_files:  # of a plan that has been made anew
            continue
        group.append((number, with_sizes(own)))
        num_bytes += sum(size for _, size in group[-1][1])
        if num_bytes >= BYTES_PER_TASK:
            yield {"files": group}
            group, num_bytes = [], 0
    if group:
        yield {"files": group}


class Head(NamedTuple):
    """What stands before the answer in its line."""

    number: int
    status: str
    usage: Usage
    key: str

    @classmethod
    def of(cls, line: bytes) -> Head:
        number, status, calls, prompt_tokens, completion_tokens, usd, key, _ = line.split(b"\t", 7)
        is_paid = status == ANSWERED.encode() and int(calls) > 0  # else it came out of a cache
        usage = Usage(int(calls), int(is_paid), int(prompt_tokens), int(completion_tokens), float(usd))
        return cls(int(number), status.decode(), usage, key.decode())

    @property
    def is_paid_answer(self) -> bool:
        """Whether it is an answer that this run has paid for, not one out of a cache."""
        return bool(self.usage.num_answered)

    @property
    def is_settled(self) -> bool:
        return self.status != FAILED


def whole_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of every whole line."""
    offset = 0
    with file.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):  # else the kill came in the middle of it
                yield offset, line
            offset += len(line)


def worker_of(file: Path) -> str:
    return file.stem.partition("-")[2]


def entry_of(line: bytes) -> Entry:
    number, status, used, key = Head.of(line)
    answer = json.loads(line.decode().split("\t", 7)[7])
    return Entry(number, status, used.calls, used.prompt_tokens, used.completion_tokens, used.usd, key, answer)
