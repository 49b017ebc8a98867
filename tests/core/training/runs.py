"""Training runs of a few texts on a small base, without Ray: in this process, or in one with a process group."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import distributed, multiprocessing

from mme5core.ownership import Owner
from mme5core.sample_table import map_samples
from mme5core.training.process import train_process
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import LOG, SAMPLES_FILE
from mme5core.training.settings import TrainingSettings
from mme5core.training.step_gradient import StepGradient

NUM_SAMPLES = 32


def text_samples(num_samples: int = NUM_SAMPLES) -> pa.Table:
    """Rows of a query, a positive and a negative, all texts."""

    def content(text: str) -> dict[str, Any]:
        return {"text": text, "image": None}

    return pa.Table.from_pylist(
        [
            {
                "id": f"s{row}",
                "query": content(f"cat number {row}"),
                "positive": content(f"a cat {row}"),
                "negatives": [content(f"a dog {row}")],
                "instruction": None,
                "document_instruction": None,
                "task": "retrieval",
            }
            for row in range(num_samples)
        ]
    )


def new_run(base: Path, folder: Path, *, num_steps: int, **settings: Any) -> TrainingRun:
    """A run whose samples are there and whose folder is owned, by this process."""
    work = folder / "_work"
    work.mkdir(parents=True, exist_ok=True)
    pq.write_table(text_samples(), work / "samples.parquet")
    list(map_samples({"input[0]": [work / "samples.parquet"]}, work / SAMPLES_FILE, num_negatives=1, limit=None))
    small: dict[str, Any] = {"batch_size": 8, "zero_stage": 0, "save_every": 1, "learning_rate": 1e-2}
    settings = small | {"lora": {"rank": 2}} | settings
    return TrainingRun(
        TrainingSettings(model=str(base), **settings), folder, work, Owner.take(work).token, "run", num_steps
    )


def log_of(run: TrainingRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / LOG).read_text().splitlines()]


def steps_with_checkpoint(run: TrainingRun) -> list[int]:
    metas = sorted((run.folder / "checkpoints").glob("step-*/meta.json"))
    return [int(meta.parent.name.removeprefix("step-")) for meta in metas]


class NanGradients:
    """Within it the gradients of these steps, which count from 1, hold a NaN; the loss stays finite."""

    def __init__(self, *steps: int) -> None:
        self._steps, self._backward = steps, StepGradient.backward

    def __enter__(self) -> None:
        def backward(gradient: StepGradient, batch: Any, step: int) -> float:
            spoil = step + 1 in self._steps
            weight = next(p for p in gradient.encoder.module.parameters() if p.requires_grad)
            hook = weight.register_hook(lambda grad: grad * float("nan") if spoil else grad)
            try:
                return self._backward(gradient, batch, step)
            finally:
                hook.remove()

        StepGradient.backward = backward  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        StepGradient.backward = self._backward  # type: ignore[method-assign]


def _in_group(_: int, run: TrainingRun, nan_steps: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")  # DeepSpeed looks
    distributed.init_process_group("gloo", init_method=f"file://{run.work}/meet", rank=0, world_size=1)
    with NanGradients(*nan_steps):
        train_process(run)
    distributed.destroy_process_group()


def train_in_group(run: TrainingRun, *nan_steps: int) -> None:
    """Train in a process of its own with a process group, as DeepSpeed needs it."""
    multiprocessing.spawn(_in_group, args=(run, nan_steps), nprocs=1)


def finite(run: TrainingRun) -> Iterator[bool]:
    """Of each tensor of the model that was written, whether it is finite."""
    from safetensors.torch import load_file

    for tensor in load_file(run.folder / "model" / "adapter_model.safetensors").values():
        yield bool(torch.isfinite(tensor).all())
