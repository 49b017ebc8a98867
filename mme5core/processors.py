"""The processors of this machine, and how many threads each of several processes on it should use."""

from __future__ import annotations

import os


def num_cpus_here() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_process(num_processes_here: int) -> int:
    """For each of the processes on this machine that compute without an accelerator.

    >>> threads_per_process(1) == num_cpus_here(), threads_per_process(1_000)
    (True, 1)
    """
    return max(1, num_cpus_here() // num_processes_here)
