"""How far a step is, how fast, and how long is left: a moving line on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TextIO

LOG_EVERY_S = 5.0
REDRAW_EVERY_S = 0.2
FEWEST_FOR_ESTIMATE = 20


@contextlib.contextmanager
def called_every(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Calls `look` from a thread of its own, that often and once more at the end."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(seconds):
            look()
        look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class Progress:
    """Shows one step's progress on stderr; use as a context manager.

    Args:
        label: the step, as in "synth".
        total: how many `unit` there are; 0 where that is not known.
        done: how many were done by earlier runs; they do not count for the speed.
    """

    def __init__(self, label: str, total: int, unit: str, *, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._first_done = self._done = done
        self._started = time.monotonic()
        self._shown = -1e9
        self._extra, self._is_paused = "", False

    def update(self, done: int, extra: str = "", *, is_paused: bool = False) -> None:
        """`done` counts from the start, earlier runs included; `extra` is shown behind the line.

        Args:
            is_paused: nothing is done for a while, so that nobody can tell how long the rest takes.
        """
        self._done, self._extra, self._is_paused = done, extra, is_paused
        now = time.monotonic()
        if now - self._shown >= (REDRAW_EVERY_S if self._is_terminal else LOG_EVERY_S):
            self._shown = now
            self._show(self.line())

    def say(self, text: str) -> None:
        """Print a line of its own; the moving line comes again below it."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._is_terminal else f"{text}\n")
        self._stream.flush()

    def restart(self, done: int) -> None:
        """Count speed from here: `done` were done before."""
        self._first_done = self._done = done
        self._started = time.monotonic()

    def line(self) -> str:
        elapsed = time.monotonic() - self._started
        rate = (self._done - self._first_done) / elapsed if elapsed > 0 else 0.0
        text = f"{self.label}: {self._done:,}"
        if self.total:
            text += f" of {self.total:,} {self.unit} ({100 * self._done / self.total:.0f} %)"
        else:
            text += f" {self.unit}"
        if rate > 0:
            text += f", {rate:,.1f}/s"
            # Of the first few nobody can tell how long the others take.
            if (
                not self._is_paused
                and self.total > self._done
                and self._done - self._first_done >= min(FEWEST_FOR_ESTIMATE, self.total / 10)
            ):
                text += f", {duration((self.total - self._done) / rate)} left"
        return text + (f", {self._extra}" if self._extra else "")

    def close(self) -> None:
        elapsed = time.monotonic() - self._started
        self._show(f"{self.line()}, took {duration(elapsed)}", end="\n")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not isinstance(error, Exception):  # somebody stopped the job: this is how far it came
            self._show(self.line(), end="\n")
        elif self._is_terminal:
            self._stream.write("\n")

    def _show(self, line: str, end: str = "") -> None:
        if self._is_terminal:
            self._stream.write(f"\r\x1b[K{line}{end}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """
    >>> duration(42.4), duration(200), duration(7300)
    ('42 s', '3 min 20 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
