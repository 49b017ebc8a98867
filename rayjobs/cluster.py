"""The Ray cluster that a job runs on: the one it was submitted to, or one of its own on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mme5core.errors import first_line
from rayjobs.cli import JobFailed
from rayjobs.config import ConfigError

OBJECT_STORE_BYTES = 1 << 30

Item = dict[str, Any]
Task = Callable[[Item], Item]
"""Takes what JSON can say, and tells what JSON can say; what it makes it writes itself."""
Runner = Callable[[Task, Sequence[Item]], Iterator[Item]]
"""Runs a task on each of some items, and gives what it tells of each, in any order."""


@contextlib.contextmanager
def connected(*, dashboard: bool = False) -> Iterator[Any]:
    """Ray, connected: to RAY_ADDRESS where that is set (as under `ray job submit`), else to a cluster of this
    process alone, gone when it ends.

    Args:
        dashboard: start Ray's dashboard with a cluster of our own; Ray Train asks it for the state of its actors.
    """
    is_local = not os.environ.get("RAY_ADDRESS")
    if is_local and not os.environ.get("RAY_AUTH_MODE"):
        # A token of our own for our own cluster: Ray 2.60 would else leave one in the user's home folder,
        # and with it ask every later `ray job submit` for it.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray

    options: dict[str, Any] = {"logging_level": logging.WARNING, "configure_logging": True}
    if is_local:
        # "local": a cluster that somebody started on this machine is joined only where RAY_ADDRESS says so.
        options |= {"address": "local", "include_dashboard": dashboard, "object_store_memory": OBJECT_STORE_BYTES}
        options |= {"num_cpus": max(2, _num_cpus()), "_temp_dir": _temp_dir()}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (Exception, SystemExit) as error:  # of a node that does not come up Ray raises the one or the other
        raise JobFailed(f"cannot connect to Ray: {first_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray put one of its own there, which ends with another code
    _quiet()
    try:
        yield ray
    finally:
        ray.shutdown()


def _quiet() -> None:
    import ray.data

    for name in ("ray.data", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a rate-limited teacher may be silent for long
    context.print_on_execution_start = False


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_worker(num_workers: int) -> int:
    """Of this machine's cores, for each of the workers on it that compute without an accelerator."""
    return max(1, _num_cpus() // num_workers)


def _temp_dir() -> str:
    # Short: Ray puts a unix socket below it, and their paths end at 107 bytes.
    return os.path.join(tempfile.gettempdir(), "ray")


def actor_cpus(ray: Any, num_actors: int, wanted: float) -> float:
    """CPUs to ask for per actor so that all actors and one reading task fit on the cluster at once.

    Actors that hold every CPU would starve the tasks that feed them, and the job would hang.
    """
    free = ray.cluster_resources().get("CPU", 1.0) - 1.0
    return max(0.01, min(wanted, free / num_actors))


def rows_to_tables(dataset: Any) -> Iterator[pa.Table]:
    """The dataset's blocks as they come."""
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def here(task: Task, items: Sequence[Item]) -> Iterator[Item]:
    """A `Runner` in this process."""
    return map(task, items)


def in_tasks(ray: Any) -> Runner:
    """A `Runner` on the cluster, an item to a task.

    What it gives raises ConfigError as a task does, and JobFailed where a task meets a file or a disk that it cannot
    use.
    """

    def run(task: Task, items: Sequence[Item]) -> Iterator[Item]:
        if not items:
            return
        dataset = ray.data.from_items([{"item": json.dumps(item)} for item in items], override_num_blocks=len(items))
        for table in rows_to_tables(dataset.map_batches(_OfEach(task), batch_size=1, batch_format="pyarrow")):
            for row in table.to_pylist():
                if row["misused"]:
                    raise ConfigError(row["misused"])
                if row["failure"]:
                    raise JobFailed(row["failure"])
                yield json.loads(row["told"])

    return run


@dataclass(frozen=True, slots=True)
class _OfEach:
    """A task as Ray Data calls it."""

    task: Task

    def __call__(self, batch: pa.Table) -> dict[str, list[str]]:
        rows: dict[str, list[str]] = {"told": [], "misused": [], "failure": []}
        for text in batch["item"].to_pylist():
            row = dict.fromkeys(rows, "")
            try:
                row["told"] = json.dumps(self.task(json.loads(text)))
            except ConfigError as error:
                row["misused"] = str(error)
            except JobFailed as error:
                row["failure"] = str(error)
            except (OSError, pa.ArrowException) as error:
                where = getattr(error, "filename", None) or getattr(self.task, "folder", "a task")
                row["failure"] = f"{where}: {getattr(error, 'strerror', None) or first_line(error)}"
            for name, values in rows.items():
                values.append(row[name])
        return rows
