"""Shows what trains and how far it is, by the files that the first process writes."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mme5core.progress import Progress, called_every
from mme5core.training.run_files import LOG, SUMMARY
from rayjobs.folder import JobFolder

POLL_EVERY_S = 0.5


@contextlib.contextmanager
def watched(folder: JobFolder, num_steps: int) -> Iterator[None]:
    """Within it a thread shows the progress."""
    with Progress("train", num_steps, "steps") as progress, called_every(POLL_EVERY_S, _Watch(folder, progress)):
        yield


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


class _Watch:
    """Shows what trains, once that is known, and each step that the log has."""

    def __init__(self, folder: JobFolder, progress: Progress) -> None:
        self._tail, self._summary = _LogTail(folder.path / LOG), folder.work / SUMMARY
        self._progress, self._started = progress, time.time()
        self._is_described = self._has_step = False

    def __call__(self) -> None:
        if not self._is_described and self._summary.is_file():
            print(f"train: {_described(json.loads(self._summary.read_text()))}", file=sys.stderr, flush=True)
            self._is_described = True
        self._tail.read()
        last = self._tail.last
        if not last or last["time"] <= self._started:  # until a process begins, the log is the killed run's
            return
        if not self._has_step:
            if last["step"] > 1:
                print(f"train: going on at step {last['step']:,}", file=sys.stderr, flush=True)
            self._progress.restart(last["step"])
            self._has_step = True
        self._progress.update(last["step"], f"loss {last['loss']:.3f}, {last['rows'] / last['seconds']:.0f} rows/s")


def _described(summary: dict[str, Any]) -> str:
    """What trains, in one line: how many weights, and the layers by the ends of their names."""
    adapted = summary["adapted_layers"]
    names = adapted or summary["trained_weights"]
    endings = Counter(".".join(name.split(".")[-1 if adapted else -2 :]) for name in names)
    listed = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    share = f"{summary['trainable_parameters']:,} of {summary['parameters']:,} weights train"
    return f"{share}, in {len(names)} {'layers' if adapted else 'tensors'}: {listed}"
