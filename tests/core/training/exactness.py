"""One training step on some processes: its loss and gradient, saved for comparison."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, distributed, multiprocessing, nn

import tests.torchvision_operators  # noqa: F401
from mme5core import Content, Encoder
from mme5core.adapters import add_adapter
from mme5core.training.contrastive import ContrastiveTask
from mme5core.training.fit import fit
from mme5core.training.gradcache import PlainEngine
from mme5core.training.objective import Objective, TaskTemperatures
from mme5core.training.sampling import BatchSampler
from mme5core.types import Sample

NUM_ROWS, NUM_NEGATIVES = 12, 2


@dataclass(frozen=True)
class Setting:
    """How the step is computed; none of it may change the numbers, except objective, dropout and targets."""

    base: str
    objective: Objective
    combination: str = "IT2IT"
    most_pictures: int = 1
    zero_stage: int | None = None
    grad_cache: bool = False
    tower_once: bool = True
    dropout: float = 0.0
    targets: str = "all"
    chunk_rows: int = 4
    learn_temperature: bool = False
    num_steps: int = 1
    activation_checkpointing: bool = False
    device_features_bytes: int = 1 << 30
    lora: dict[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    losses: list[float]
    gradients: dict[str, Tensor]
    temperatures: dict[str, float]
    num_reductions: int


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def numbered_content(modality: str, number: int, most_pictures: int) -> Content:
    """Of 1 to `most_pictures` pictures, where it has any; contents share pictures, and one may show a picture twice."""
    text = f"{'a dog on a red sofa ' * (number % 4)}{number}" if "T" in modality else None
    first = picture(number % 7)
    others = [picture(number % 3 + place, (30, 60)) for place in range(number % most_pictures)]
    return Content(text, images=[first, *others] if "I" in modality else ())


def samples(combination: str, most_pictures: int = 1) -> list[Sample]:
    query, positive = combination.split("2")
    random = np.random.default_rng(0)

    def content(modality: str, number: int) -> Content:
        return numbered_content(modality, number, most_pictures)

    return [
        Sample(
            str(row),
            content(query, row),
            content(positive, 100 + row),
            # Some hard negatives are other rows' positives.
            tuple(content(positive, 100 + row + 1 + 9 * place) for place in range(NUM_NEGATIVES)),
            "Find:",
            task="ab"[row % 2],
            scores=tuple(random.uniform(size=1 + NUM_NEGATIVES)),
        )
        for row in range(NUM_ROWS)
    ]


class Recording:
    """An engine that keeps the gradient of the last step, as the optimizer saw it."""

    def __init__(self, engine: Any, module: nn.Module) -> None:
        self._engine, self._module, self.optimizer = engine, module, engine.optimizer
        self.gradients: dict[str, Tensor] = {}

    def __call__(self, batches: Any) -> Tensor:
        vectors: Tensor = self._engine(batches)
        return vectors

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    def coalesce_grad_reduction(self) -> AbstractContextManager[Any]:
        manager: AbstractContextManager[Any] = self._engine.coalesce_grad_reduction()
        return manager

    def get_global_grad_norm(self) -> Any:
        return self._engine.get_global_grad_norm()

    def step(self) -> None:
        trainable = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        if isinstance(self._engine, PlainEngine):
            self._engine._reduce(list(trainable.values()))
            self.gradients = {
                n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trainable.items()
            }
            with torch.no_grad():
                torch.nn.utils.clip_grad_norm_(trainable.values(), 1e9)
            self._engine.optimizer.step()
            self._engine.optimizer.zero_grad()
            return
        from deepspeed.utils import safe_get_full_grad

        found = {name: safe_get_full_grad(p) for name, p in trainable.items()}
        self.gradients = {n: torch.zeros(0) if g is None else g.detach().clone() for n, g in found.items()}
        self._engine.step()


def step(setting: Setting) -> Found:
    """The step on this process, alone or in a group."""
    torch.manual_seed(0)
    encoder = Encoder.load(setting.base, device="cpu", dtype="float32", attention="eager")
    lora = {"rank": 4, "alpha": 8, "dropout": setting.dropout, "train_embeddings": False} | setting.lora
    encoder.module.model = add_adapter(encoder.module.model, targets=setting.targets, **lora)
    if setting.activation_checkpointing:
        encoder.checkpoint_activations()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.module.named_parameters():
            if "lora_B" in name:  # at 0 no gradient would reach lora_A, and dropout would not matter
                parameter.normal_(std=0.1, generator=generator)
    trainable = [p for p in encoder.module.parameters() if p.requires_grad]
    if setting.zero_stage is None:
        engine: Any = PlainEngine(encoder.module, torch.optim.AdamW(trainable, weight_decay=0.0), max_grad_norm=1e9)
    else:
        from mme5core.training import deepspeed_engine

        engine = deepspeed_engine.build(
            encoder.module,
            zero_stage=setting.zero_stage,
            max_grad_norm=1e9,
            weight_decay=0.0,
            persistence_threshold=0,  # no weight of so small a model would be sharded otherwise
        )
    rows = [
        row for combination in setting.combination.split("+") for row in samples(combination, setting.most_pictures)
    ]
    temperatures = None
    if setting.learn_temperature:
        temperatures = TaskTemperatures([row.task for row in rows], setting.objective.temperature, learning_rate=0.1)
    recording = Recording(engine, encoder.module)
    results = fit(
        recording,
        encoder,
        rows,
        BatchSampler([row.modality_combination for row in rows], range(len(rows)), batch_size=NUM_ROWS, seed=0),
        task=ContrastiveTask(encoder, setting.objective, NUM_NEGATIVES, temperatures),
        temperatures=temperatures,
        num_steps=setting.num_steps,
        learning_rate=1e-3,
        warmup_ratio=0.0,
        grad_cache=setting.grad_cache,
        tower_once=setting.tower_once,
        chunk_rows=setting.chunk_rows,
        device_features_bytes=setting.device_features_bytes,
        seed=3,
    )
    losses = [result.loss for result in results]
    return Found(
        losses,
        recording.gradients,
        temperatures.by_task() if temperatures else {},
        getattr(engine, "num_reductions", 0),
    )


def _process(rank: int, settings: Sequence[Setting], num_processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_processes))  # DeepSpeed looks
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_processes)
    for number, setting in enumerate(settings):
        torch.save(vars(step(setting)), f"{folder}/{number}-{rank}.pt")
    distributed.destroy_process_group()


def steps_on(num_processes: int, settings: Sequence[Setting], folder: Path) -> list[list[Found]]:
    """For each setting what each process found; the processes are started once for all."""
    folder.mkdir(parents=True)
    multiprocessing.spawn(_process, args=(settings, num_processes, str(folder)), nprocs=num_processes)
    return [
        [Found(**torch.load(folder / f"{number}-{rank}.pt", weights_only=True)) for rank in range(num_processes)]
        for number in range(len(settings))
    ]


def largest_difference(found: Found, expected: Found) -> float:
    """Of the gradients, relative to the largest entry of the expected one; and of the losses."""
    assert found.gradients.keys() == expected.gradients.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.gradients.values()) or 1.0
    apart = 0.0
    for name, gradient in expected.gradients.items():
        # DeepSpeed has no gradient where a step gave none.
        other = found.gradients[name] if found.gradients[name].numel() else torch.zeros_like(gradient)
        apart = max(apart, float((other - gradient).abs().max()))
    losses = max(abs(a - b) / abs(b) for a, b in zip(found.losses, expected.losses, strict=True))
    return max(apart / scale, losses)
