"""Files that appear whole or not at all, and that outlive a power cut or a lost node."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mme5core.errors import WorkFailed


def write_json(file: Path, record: Any) -> None:
    """Write by rename: a reader sees the old file or the new one."""
    # A random name: processes on two machines may have the same number.
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    with temporary.open("w") as stream:
        stream.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)


def sync_file(file: Path) -> None:
    """Wait until a file is on the disk, or with the server of a shared file system."""
    sync(os.open(file, os.O_RDONLY))


def sync(descriptor: int) -> None:
    """`sync_file` of an open file; closes the descriptor."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def wait_until_seen(is_there: Callable[[], bool], folder: Path, *, timeout_s: float = 120.0) -> None:
    """Wait until this machine sees what other nodes have written to a shared folder.

    Raises:
        WorkFailed: it never does, because the folder is not shared.
    """
    deadline = time.monotonic() + timeout_s
    while not is_there():
        if time.monotonic() > deadline:
            raise WorkFailed(f"what workers wrote to {folder} is not here: 'output' must lie where all nodes see it")
        time.sleep(1.0)
