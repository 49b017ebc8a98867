"""SIGTERM and Ctrl-C: a stop at once, or a soft one that lets what is under way end first."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from mme5core.errors import first_line
from mme5core.storage import without_credentials
from rayjobs.command.outcome import Stopped

SAME_SIGNAL_S = 1.0


def stop_at_once(signum: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGTERM outside of soft stops."""
    raise Stopped


@contextlib.contextmanager
def stopping_softly(grace_s: float) -> Iterator[threading.Event]:
    """While this is open SIGTERM and Ctrl-C only set the event that it yields.

    A second signal, or the end of the grace period, stops the job at once. An error after the first signal counts as
    a stop too: other processes may have got the signal as well.
    """
    asked, is_over, is_late = threading.Event(), threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {
        number: handler
        for number in (signal.SIGTERM, signal.SIGINT)
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)
    }
    asked_s = 0.0

    def insist(number: int) -> None:
        if not is_over.wait(grace_s):
            is_late.set()
            os.kill(os.getpid(), number)

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked_s
        if not asked.is_set():
            asked.set()
            asked_s = time.monotonic()
            threading.Thread(target=insist, args=(number,), daemon=True).start()
        elif is_late.is_set() or time.monotonic() - asked_s > SAME_SIGNAL_S:  # else our process group got it twice
            raise Stopped

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield asked
    except Exception as error:
        if asked.is_set():
            print(without_credentials(f"while stopping: {first_line(error)}"), file=sys.stderr)
            raise Stopped from None
        raise
    finally:
        is_over.set()
        for number, handler in before.items():
            signal.signal(number, handler)
