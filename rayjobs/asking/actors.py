"""The actor that asks: files of records in, whether to stop out; the answers go into the log."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from mme5core.asking.worker import Asking, Worker
from rayjobs.on_ray.gate import LimiterHandle


class AskActor:
    def __init__(self, asking: Asking, limiter: LimiterHandle) -> None:
        self._worker = Worker(asking, limiter.exchange(), api_key=limiter.api_key())

    async def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        stop = None
        for number in batch["file"].to_pylist():
            stop = await self._worker.ask_file(number)
        return {
            "code": [stop.code if stop else 0],
            "reason": [stop.reason if stop else ""],
            "is_budget_spent": [bool(stop and stop.is_budget_spent)],
            "written": [json.dumps(self._worker.take_written())],
        }
