"""One run per folder: an owner's token in a file, with a heartbeat, where file locks may not work."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from mme5core.errors import InputError, WorkFailed

OWNER = "owner.json"
BEAT_S = 5.0
SILENT_S = 30.0
"""An owner on another machine whose heartbeat is older than this is dead."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who owns a folder: a token of its own, and the process to look for on its machine."""

    token: str
    machine: str
    host: str
    pid: int
    started: str | None

    @classmethod
    def this_process(cls) -> Holder:
        return cls(uuid.uuid4().hex, _machine(), socket.gethostname(), os.getpid(), _started(os.getpid()))

    def is_alive_here(self) -> bool | None:
        """Whether its process lives; None where that cannot be known: of another machine, or without /proc."""
        if self.machine != _machine():
            return None
        if not _exists(self.pid):
            return False
        started = _started(self.pid)
        return None if started is None or self.started is None else started == self.started


class Owner:
    """This process as the owner of a folder, until `release` or its end.

    The file's modification time is the heartbeat. An owner that died on this machine is replaced at once, one on
    another machine once it has been silent for `SILENT_S`. A process that was only paused that long finds another token
    when it wakes up (`check_owner`), and stops before it writes.
    """

    def __init__(self, folder: Path, holder: Holder) -> None:
        self._file, self._holder = folder / OWNER, holder
        self._released = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        atexit.register(self.release)

    @classmethod
    def take(cls, folder: Path, *, silent_s: float = SILENT_S) -> Owner:
        """
        Raises:
            InputError: another run that is alive owns the folder.
        """
        file, holder = folder / OWNER, Holder.this_process()
        own = folder / f".{OWNER}.{holder.token}"
        own.write_text(json.dumps(asdict(holder)))
        try:
            while (other := read_holder(folder)) is not None:
                _wait_until_dead(folder, other, silent_s)
                _remove(file, other)
            os.utime(own)  # the heartbeat begins now, not before the wait
            try:
                os.link(own, file)  # fails where another run was faster
            except FileExistsError:
                raise is_owned(folder) from None
            except OSError:  # a file system without hard links
                os.rename(own, file)
        finally:
            own.unlink(missing_ok=True)
        return cls(folder, holder)

    @property
    def token(self) -> str:
        return self._holder.token

    def release(self) -> None:
        """Give the folder up; the next run need not wait for the heartbeat to grow old."""
        if not self._released.is_set():
            self._released.set()
            with contextlib.suppress(OSError):
                if read_holder(self._file.parent) == self._holder:
                    self._file.unlink()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):  # the folder is gone, or its server is away for now
                if read_holder(self._file.parent) == self._holder:
                    os.utime(self._file)


def read_holder(folder: Path) -> Holder | None:
    """The owner of a folder, alive or not; None where it has none."""
    return _holder_in(folder / OWNER)


def is_owned_now(folder: Path) -> bool:
    """Whether a living run owns the folder, as far as can be told without waiting."""
    holder = read_holder(folder)
    if holder is None:
        return False
    alive = holder.is_alive_here()
    return _age_s(folder / OWNER, time.time()) < SILENT_S if alive is None else alive


def check_owner(folder: Path, token: str) -> None:
    """
    Raises:
        WorkFailed: the folder belongs to another run by now.
    """
    holder = read_holder(folder)
    if holder is None or holder.token != token:
        raise WorkFailed("another run of this folder has taken over")


def is_locked_by_old_version(folder: Path) -> bool:
    """Whether a run of version 0.1, which held a file lock instead, is writing the folder."""
    try:
        with (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def is_owned(folder: Path) -> InputError:
    """What to say where another run owns the folder with the output in whose work folder the token lies."""
    return InputError(f"output {str(folder.parent)!r} is being written by another run")


def _wait_until_dead(folder: Path, other: Holder, silent_s: float) -> None:
    """
    Raises:
        InputError: it lives.
    """
    alive = other.is_alive_here()
    if alive:
        raise is_owned(folder)
    if alive is False:
        return
    file = folder / OWNER
    now = _file_system_time(folder)
    last_beat_s = _modified(file)
    left_s = silent_s - (now - last_beat_s)
    if left_s > 0:
        print(f"{folder.parent}: a run on {other.host} may be alive; waiting {left_s:.0f} s for it", file=sys.stderr)
    while left_s > 0:
        time.sleep(min(1.0, left_s))
        left_s -= 1.0
        if _modified(file) != last_beat_s:
            raise is_owned(folder)


def _remove(file: Path, other: Holder) -> None:
    """Remove the file of a dead owner, unless another run has replaced it meanwhile."""
    aside = file.with_name(f".{OWNER}.{uuid.uuid4().hex}.dead")
    with contextlib.suppress(FileNotFoundError):
        os.rename(file, aside)
        if _holder_in(aside) != other:
            os.rename(aside, file)  # it was the file of a faster run
            raise is_owned(file.parent)
        aside.unlink()


def _holder_in(file: Path) -> Holder | None:
    try:
        return Holder(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # cut off by a full disk
        return Holder("", "", "an unknown machine", 0, "")


def _file_system_time(folder: Path) -> float:
    """The time by the clock that stamps the folder's files, which may be another machine's."""
    probe = folder / f".time.{uuid.uuid4().hex}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _age_s(file: Path, now: float) -> float:
    return now - _modified(file)


def _machine() -> str:
    """What tells machines apart, and containers, whose process numbers mean nothing outside of them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; empty where it is dead; None where that cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no /proc, or one that shows a user's own processes only
        return None
    return "" if fields[0] in "ZX" else fields[19]  # a zombie is dead
