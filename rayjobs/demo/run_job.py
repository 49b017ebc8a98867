"""Runs a job as a user would: its command in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from mme5core.errors import WorkFailed


def run_job(command: Sequence[str], *, shows: bool = True) -> dict[str, Any]:
    """Run a command such as ["judge", "export", "input=..."]; returns its counters.

    Args:
        shows: print what it prints.

    Raises:
        WorkFailed: it ended with another code than 0.
    """
    name, *arguments = command
    lines: list[str] = []
    full = [sys.executable, "-m", f"rayjobs.{name.replace('-', '_')}", *arguments]
    with subprocess.Popen(full, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if shows and not line.startswith('{"job"'):
                    print(line, end="", flush=True)
        except BaseException:
            # Ray's own processes end with the job's, and the job must end before we do.
            process.terminate()
            process.wait()
            raise
    summary = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if process.returncode != 0:
        raise WorkFailed(f"{name} ended with code {process.returncode}: {summary.get('reason', 'no reason given')}")
    print(f"{name}: {summary['reason']}, {json.dumps(summary['counters'])}", file=sys.stderr)
    counters: dict[str, Any] = summary["counters"]
    return counters
