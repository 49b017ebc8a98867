"""Shows what trains and how far it is, by the files that the first process writes."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mme5core.progress import Progress
from mme5core.training.run_files import LOG, SUMMARY
from rayjobs.folder import JobFolder

POLL_EVERY_S = 0.5


@contextlib.contextmanager
def watched(folder: JobFolder, num_steps: int) -> Iterator[None]:
    """Within it a thread shows the progress."""
    is_over = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, num_steps, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def read_summary(folder: JobFolder) -> dict[str, Any]:
    """What trained, and the first and the last loss."""
    file = folder.work / SUMMARY
    summary: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    losses = [line["loss"] for line in _whole_lines((folder.path / LOG).read_text())]
    ends = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}  # a lost folder has lost its log
    return {"training": summary | ends}


class _LogTail:
    """The last line of a log that grows, each byte read once."""

    def __init__(self, log: Path) -> None:
        self._log, self._position, self._rest = log, 0, ""
        self.last: dict[str, Any] | None = None

    def read(self) -> None:
        try:
            if self._log.stat().st_size < self._position:
                self._position, self._rest = 0, ""  # cut back to the last checkpoint
            with self._log.open() as stream:
                stream.seek(self._position)
                text = self._rest + stream.read()
                self._position = stream.tell()
        except FileNotFoundError:
            return
        whole, _, self._rest = text.rpartition("\n")  # the last line may be half written
        lines = _whole_lines(whole + "\n")
        self.last = lines[-1] if lines else self.last


def _whole_lines(text: str) -> list[dict[str, Any]]:
    """The lines that are whole: a kill may have cut the last one."""
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def _watch(folder: JobFolder, num_steps: int, is_over: threading.Event) -> None:
    tail, summary = _LogTail(folder.path / LOG), folder.work / SUMMARY
    started = time.time()
    with Progress("train", num_steps, "steps") as progress:
        is_first, is_described, is_last = True, False, False
        while not is_last:
            is_last = is_over.wait(POLL_EVERY_S)
            if not is_described and summary.is_file():
                print(f"train: {_described(json.loads(summary.read_text()))}", file=sys.stderr, flush=True)
                is_described = True
            tail.read()
            last = tail.last
            if last and last["time"] > started:  # until a process begins, the log is the killed run's
                if is_first:
                    if last["step"] > 1:
                        print(f"train: going on at step {last['step']:,}", file=sys.stderr, flush=True)
                    progress.restart(last["step"])
                    is_first = False
                progress.update(last["step"], f"loss {last['loss']:.3f}, {last['rows'] / last['seconds']:.0f} rows/s")


def _described(summary: dict[str, Any]) -> str:
    """What trains, in one line: how many weights, and the layers by the ends of their names."""
    adapted = summary["adapted_layers"]
    names = adapted or summary["trained_weights"]
    endings = Counter(".".join(name.split(".")[-1 if adapted else -2 :]) for name in names)
    listed = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    share = f"{summary['trainable_parameters']:,} of {summary['parameters']:,} weights train"
    return f"{share}, in {len(names)} {'layers' if adapted else 'tensors'}: {listed}"
