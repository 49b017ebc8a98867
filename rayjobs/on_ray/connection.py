"""The Ray cluster that a job runs on: the one it was submitted to, or one of its own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator

from mme5core.errors import WorkFailed, first_line
from mme5core.processors import num_cpus_here

OBJECT_STORE_BYTES = 1 << 30


def is_submitted() -> bool:
    """Whether the job runs on a cluster that somebody else started, as under `ray job submit`."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextlib.contextmanager
def connected(*, dashboard: bool = False) -> Iterator[None]:
    """Ray, connected: to RAY_ADDRESS where that is set (as under `ray job submit`), else to a cluster of this
    process alone, gone when it ends.

    Args:
        dashboard: start Ray's dashboard with a cluster of our own; Ray Train asks it for the state of its actors.

    Raises:
        WorkFailed: there is no such cluster, or none can be started.
    """
    if not is_submitted() and not os.environ.get("RAY_AUTH_MODE"):
        # A token of our own for our own cluster: Ray 2.60 would else leave one in the user's home folder, and with it
        # ask every later `ray job submit` for it. Ray reads these once, when it is imported.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # A thread that goes on after the end must not start another cluster with its next call. Read at the import, too.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if is_submitted():
            ray.init(logging_level=logging.WARNING, configure_logging=True)
        else:
            ray.init(
                # "local": a cluster that somebody started on this machine is joined only where RAY_ADDRESS says so.
                address="local",
                num_cpus=max(2, num_cpus_here()),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=dashboard,
                logging_level=logging.WARNING,
                configure_logging=True,
                # Short: Ray puts a unix socket below it, and their paths end at 107 bytes.
                _temp_dir=os.path.join(tempfile.gettempdir(), "ray"),
            )
    except (Exception, SystemExit) as error:  # of a node that does not come up Ray raises the one or the other
        raise WorkFailed(f"cannot connect to Ray: {first_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray put one of its own there, which ends with another code
    _quiet()
    try:
        yield
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
