"""A file of records while a worker asks about them, and the log that takes their answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mme5core.asking.answer_log import AnswerWriter, Entry, settled, unreadable
from mme5core.asking.question import Record, Records
from mme5core.durable import sync

SYNC_EVERY_S = 1.0


class LogFile:
    """One file of records, and this worker's own file of the log for it.

    Args:
        number: of the file among `records`.
        worker: the name of the worker in the log.
    """

    def __init__(self, records: Records, log: Path, number: int, worker: str) -> None:
        self.number = number
        self.folder = log
        self._start = int(records.starts[number])
        self._records = records.rows(number)
        self._writer = AnswerWriter(log, number, worker)
        self._syncing = asyncio.Lock()
        self._sync_error: OSError | None = None
        self._unreadable: set[int] | None = None  # read when it is first needed

    def __enter__(self) -> LogFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._writer.close()

    @property
    def size(self) -> tuple[str, int] | None:
        """Name and bytes of this worker's file of the log; None where it has written nothing."""
        file = self._writer.path
        return (file.name, file.stat().st_size) if file.is_file() else None

    def missing(self) -> list[int]:
        """The records without an answer, as the log says now: another worker may have died over this file."""
        have = settled(self.folder, self.number)
        return [n for n in range(self._start, self._start + len(self._records)) if n not in have]

    def is_second_unreadable(self, number: int) -> bool:
        """Whether an answer about the record could not be read before, in this run or an earlier one."""
        if self._unreadable is None:
            self._unreadable = unreadable(self.folder, self.number)
        is_second = number in self._unreadable
        self._unreadable.add(number)
        return is_second

    def record(self, number: int) -> Record:
        return self._records[number - self._start]

    def write(self, entry: Entry) -> None:
        self._writer.write(entry)

    async def sync(self) -> None:
        """Wait until what was written so far is on the disk.

        Raises:
            OSError: it is not; also at every later call, since the system reports a failed sync only once.
        """
        async with self._syncing:  # an earlier call may not have ended
            if self._sync_error is not None:
                raise self._sync_error
            if (descriptor := self._writer.unsynced()) is not None:
                try:
                    await asyncio.to_thread(sync, descriptor)
                except OSError as error:
                    self._sync_error = error
                    raise


class OpenLogFiles:
    """The files that a worker has open, synced every second: a lost machine takes one second of answers with it.

    Args:
        on_error: called where a file cannot be synced.
        every_second: called as often, while files are open.

    Attributes:
        written: bytes of each file of the log that this worker has closed.
    """

    def __init__(
        self,
        records: Records,
        log: Path,
        worker: str,
        on_error: Callable[[OSError], None],
        every_second: Callable[[], None],
    ) -> None:
        self._records, self._log, self._worker = records, log, worker
        self._on_error, self._every_second = on_error, every_second
        self._open: set[LogFile] = set()
        self.written: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def __contains__(self, file: LogFile) -> bool:
        return file in self._open

    def __bool__(self) -> bool:
        return bool(self._open)

    @contextlib.contextmanager
    def opened(self, number: int) -> Iterator[LogFile]:
        with LogFile(self._records, self._log, number, self._worker) as file:
            self._open.add(file)
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._sync_while_open())
            try:
                yield file
            finally:
                self._open.remove(file)
                file.close()
                if (own := file.size) is not None:
                    self.written[own[0]] = own[1]

    async def _sync_while_open(self) -> None:
        while self._open:
            await asyncio.sleep(SYNC_EVERY_S)
            for file in list(self._open):
                try:
                    await file.sync()
                except OSError as error:
                    self._on_error(error)
            try:
                self._every_second()
            except OSError as error:
                self._on_error(error)
