"""Shows what trains and how far it is, by the files that the first process writes."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mme5core.progress import Progress, called_every
from mme5core.training.run_files import LOG, SUMMARY, whole_lines
from rayjobs.folder import JobFolder

POLL_EVERY_S = 0.5


@contextlib.contextmanager
def watched(folder: JobFolder, num_steps: int, job: str) -> Iterator[None]:
    """Within it a thread shows the progress."""
    with Progress(job, num_steps, "steps") as progress, called_every(POLL_EVERY_S, _Watch(folder, progress, job)):
        yield


def read_summary(folder: JobFolder) -> dict[str, Any]:
    """What trained, the first and the last loss, and how many steps were skipped."""
    file = folder.work / SUMMARY
    summary: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    trained = {name: entry for name, entry in summary.items() if name not in ("first_step", "passed_over")}
    log = folder.path / LOG
    steps = whole_lines(log.read_text(errors="replace")) if log.is_file() else []
    ends = {"first_loss": steps[0]["loss"], "last_loss": steps[-1]["loss"]} if steps else {}
    num_skipped = sum(step.get("is_skipped", False) for step in steps)
    return {"training": trained | ends | ({"skipped_steps": num_skipped} if num_skipped else {})}


class _LogTail:
    """The lines of a log that grows, each byte read once."""

    def __init__(self, log: Path) -> None:
        self._log, self._position, self._rest = log, 0, b""

    def read(self) -> list[dict[str, Any]]:
        """The steps that are new since the last call."""
        try:
            with self._log.open("rb") as stream:
                if stream.seek(0, os.SEEK_END) < self._position:
                    self._position, self._rest = 0, b""  # cut back to the last checkpoint
                stream.seek(self._position)
                text = self._rest + stream.read()
                self._position = stream.tell()
        except OSError:  # not there yet, or its server is away for now
            return []
        whole, newline, self._rest = text.rpartition(b"\n")  # the last line may be half written
        return whole_lines((whole + newline).decode(errors="replace"))


class _Watch:
    """Shows what trains, once that is known, and each step that the log has."""

    def __init__(self, folder: JobFolder, progress: Progress, job: str) -> None:
        self._tail, self._summary = _LogTail(folder.path / LOG), folder.work / SUMMARY
        self._progress, self._job = progress, job
        self._first_step: int | None = None  # once a process has begun: until then the log is a killed run's
        self._skipped: set[int] = set()

    def __call__(self) -> None:
        if self._first_step is None and not self._begin():
            return
        assert self._first_step is not None
        for step in self._tail.read():
            if step["step"] <= self._first_step:
                continue
            if step.get("is_skipped") and step["step"] not in self._skipped:
                self._skipped.add(step["step"])
                self._say(f"step {step['step']:,} is skipped: its gradient is NaN or infinite")
            self._progress.update(
                step["step"], f"loss {step['loss']:.3f}, {step['rows'] / max(step['seconds'], 1e-9):.0f} rows/s"
            )

    def _say(self, line: str) -> None:
        print(f"{self._job}: {line}", file=sys.stderr, flush=True)

    def _begin(self) -> bool:
        """Say what trains and from where, if a process has written it by now."""
        try:
            summary = json.loads(self._summary.read_text())
        except (OSError, ValueError):  # not there yet, or its server is away for now
            return False
        self._first_step = summary["first_step"]
        for problem in summary["passed_over"]:
            self._say(problem)
        self._say(_described(summary))
        if self._first_step:
            self._say(f"going on after step {self._first_step:,}, from its checkpoint")
        elif summary["passed_over"]:
            self._say("no whole checkpoint is left: training from the beginning")
        self._progress.restart(self._first_step or 0)
        return True


def _described(summary: dict[str, Any]) -> str:
    """What trains, in one line: how many weights, and the layers by the ends of their names."""
    adapted = summary["adapted_layers"]
    names = adapted or summary["trained_weights"]
    endings = Counter(".".join(name.split(".")[-1 if adapted else -2 :]) for name in names)
    listed = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    share = f"{summary['trainable_parameters']:,} of {summary['parameters']:,} weights train"
    return f"{share}, in {len(names)} {'layers' if adapted else 'tensors'}: {listed}"
