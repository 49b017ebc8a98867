"""Bookkeeping as tasks: plain functions of small items that write their files themselves, run here or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Item = dict[str, Any]
"""What a task is given, and what it reports: only what JSON can say, so that no data passes through the driver."""

Task = Callable[[Item], Iterator[Item]]
"""Does the work of one item, and yields reports while it does.

A task may run twice at once (its node was thought dead) and may outlive its job, so it names its files by chance and
they count only once it has reported them.
"""

Runner = Callable[[Task, Sequence[Item]], Iterator[Item]]
"""Runs a task for each of some items, and yields the reports as they come, in any order."""


def run_here(task: Task, items: Sequence[Item]) -> Iterator[Item]:
    """A `Runner` in this process."""
    for item in items:
        yield from task(item)
