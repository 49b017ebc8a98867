"""Bookkeeping as plain Ray tasks: a few items at a time, reports as they come, failures in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from mme5core.errors import InputError, WorkFailed, first_line
from mme5core.tasks import Item, Task
from rayjobs.on_ray.resources import BOOKKEEPING, Placement, cluster_cpus

WAITING_PER_CPU = 2
"""Tasks that wait for each CPU, so that it never idles; more would only fill the scheduler."""
BOOKKEEPING_PLACE = Placement(BOOKKEEPING.cpus, 0.0)
MAX_RETRIES = 5
"""Of a task whose node or process died."""


def run_on_ray(
    task: Task, items: Sequence[Item], *, placement: Placement = BOOKKEEPING_PLACE, at_once: int | None = None
) -> Iterator[Item]:
    """A `Runner` on the cluster, one Ray task for each item.

    Args:
        placement: of each task.
        at_once: most tasks that run or wait; None: by the CPUs of the cluster.

    Raises:
        InputError: as a task raises it.
        WorkFailed: as a task raises it, or a task met a file or a disk that it cannot use, or kept dying.
    """
    import ray
    import ray.exceptions

    remote = ray.remote(_reports).options(
        num_cpus=placement.cpus,
        num_gpus=placement.gpus,
        num_returns="streaming",
        max_retries=MAX_RETRIES,
        name=type(task).__name__,
    )
    shared = ray.put(task)
    waiting = iter(items)
    num_at_once = at_once or WAITING_PER_CPU * cluster_cpus()
    running: list[Any] = [remote.remote(shared, item) for item in islice(waiting, num_at_once)]
    try:
        while running:
            ready: Any = ray.wait(running, num_returns=1, fetch_local=False)[0][0]
            try:
                message: dict[str, Any] = ray.get(next(ready))
            except StopIteration:
                running = [other for other in running if other is not ready]
                running += [remote.remote(shared, item) for item in islice(waiting, 1)]
                continue
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None)
                problem = first_line(error) if cause is None else f"{type(cause).__name__}: {first_line(cause)}"
                raise WorkFailed(f"a task was lost ({problem})") from None
            yield _checked(message)
    finally:
        for other in running:
            ray.cancel(other)


def _reports(task: Task, item: Item) -> Iterator[Item]:
    """What a task reports; its failure as a last report, since Ray would print an exception with its traceback."""
    try:
        for report in task(item):
            yield {"report": report}
    except InputError as error:
        yield {"input_error": str(error)}
    except WorkFailed as error:
        yield {"failure": str(error)}
    except (OSError, pa.ArrowException) as error:
        where = getattr(error, "filename", None) or getattr(task, "folder", "a task")
        yield {"failure": f"{where}: {getattr(error, 'strerror', None) or first_line(error)}"}


def _checked(message: dict[str, Any]) -> Item:
    if "input_error" in message:
        raise InputError(message["input_error"])
    if "failure" in message:
        raise WorkFailed(message["failure"])
    report: Item = message["report"]
    return report
