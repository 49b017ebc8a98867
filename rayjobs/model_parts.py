"""Parts of an output that a pool of models writes: what `judge` and `rerank` share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from mme5core.errors import InputError, WorkFailed, first_line
from mme5core.model_settings import ModelSettings
from mme5core.parts import Part, PartFiles
from mme5core.processors import threads_per_process
from mme5core.progress import Progress
from mme5core.tasks import Item
from rayjobs.on_ray.resources import Stage, place_on, workers_per_node
from rayjobs.on_ray.streams import ActorPool, stream


class Block(Protocol):
    """The work of a pool; travels to the workers."""

    @property
    def settings(self) -> ModelSettings: ...

    def load(self, device: str) -> Any:
        """What `work` needs, loaded once by each actor.

        Raises:
            ValueError: the model cannot be loaded.
        """
        ...

    def work(self, item: Item, loaded: Any) -> Item:
        """Write the part of an item, with `NewPart`; returns the report."""
        ...


class ModelActor:
    """
    Args:
        uses_gpu: whether Ray has given the actor a GPU.
        workers_here: actors that share its node, for the threads of each.
    """

    def __init__(self, block: Block, uses_gpu: bool, workers_here: int) -> None:
        if not uses_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves an actor without GPUs all that it could see
        import torch

        if not uses_gpu:
            torch.set_num_threads(threads_per_process(workers_here))
        self._block, self._problem = block, ""
        try:
            self._loaded = block.load("auto" if uses_gpu else "cpu")
        except Exception as error:  # raised here, it would come out as Ray's tracebacks
            self._problem = f"cannot load model {block.settings.model!r}: {first_line(error)}"

    def __call__(self, batch: pa.Table) -> dict[str, list[str]]:
        if self._problem:
            return {"report": [""], "unloadable": [self._problem], "failure": [""]}
        try:
            report = self._block.work(json.loads(batch["item"][0].as_py()), self._loaded)
            return {"report": [json.dumps(report)], "unloadable": [""], "failure": [""]}
        except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
            return {"report": [""], "unloadable": [""], "failure": [f"{type(error).__name__}: {first_line(error)}"]}


def write_parts(
    block: Block,
    folder: Path,
    output: Path,
    *,
    num_rows: int,
    rows_per_file: int,
    num_workers: int,
    stage: Stage,
    job: str,
    unit: str,
    check_owner: Callable[[], None],
) -> Sequence[Part]:
    """The parts in their order; those that an earlier run has left in the folder are taken as they are.

    Args:
        folder: where parts are written, a `PartFiles` folder.
        stage: for messages and resources.
        job, unit: for the progress line.

    Raises:
        InputError: the model cannot be loaded.
        WorkFailed: a block cannot be done.
    """
    items: list[Item] = [
        {"part": n, "start": start, "stop": min(start + rows_per_file, num_rows), "made_from": ""}
        for n, start in enumerate(range(0, num_rows, rows_per_file))
    ]
    files = PartFiles(folder, output)
    parts = files.written(items)
    missing = [item for item in items if item["part"] not in parts]
    done = sum(part.report["stop"] - part.report["start"] for part in parts.values())
    with Progress(job, num_rows, unit, done=done) as progress:
        for part in files.take(_reports(block, missing, num_workers, stage, job)):
            check_owner()
            parts[part.number] = part
            done += part.report["stop"] - part.report["start"]
            progress.update(done)
    return [parts[item["part"]] for item in items]


def _reports(block: Block, items: Sequence[Item], num_workers: int, stage: Stage, job: str) -> Iterator[Item]:
    if not items:
        return
    num_workers, settings = min(num_workers, len(items)), block.settings
    placement = place_on(stage, num_workers, device=settings.device, gpus_per_worker=settings.gpus_per_worker, job=job)
    arguments = (block, placement.uses_gpu, workers_per_node(num_workers))
    pool = ActorPool(ModelActor, arguments, num_workers, placement)
    for row in stream([{"item": json.dumps(item)} for item in items], pool, num_tasks=len(items)):
        if row["unloadable"]:
            raise InputError(row["unloadable"])
        if row["failure"]:
            raise WorkFailed(f"{job}: {row['failure']}")
        yield json.loads(row["report"])
