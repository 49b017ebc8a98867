"""Servers that reply as they are told, and a plan to ask them for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.asking.server import Reply, Served, Work


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any], int], Reply]], Served]]:
    running: list[Served] = []

    def start(reply: Callable[[dict[str, Any], int], Reply]) -> Served:
        running.append(Served(reply))
        return running[-1]

    yield start
    for served in running:
        served.server.shutdown()
        served.server.server_close()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)
