"""Training, one step at a time: the same loop in a Ray worker, a notebook and a test."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from mme5core.distributed import sum_over_processes
from mme5core.encoder import Encoder
from mme5core.training.gradcache import Engine, PlainEngine, was_skipped
from mme5core.training.objective import TaskTemperatures
from mme5core.training.picture_cache import PictureCache
from mme5core.training.sampling import BatchSampler
from mme5core.training.step_batches import StepBatches
from mme5core.training.step_gradient import StepGradient
from mme5core.training.step_task import StepTask
from mme5core.types import Sample

MOST_SKIPPED = 8
"""So many skipped steps in a row are no accident."""

__all__ = ["Engine", "PlainEngine", "StepResult", "fit", "learning_rate_at"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures of one optimizer step; `step` counts from 1, `loss` is that of the whole batch.

    A step whose gradient is not finite is skipped: it changes no weight, and its `grad_norm` is NaN.
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    rows: int
    seconds: float
    modality_combination: str
    temperatures: dict[str, float] = field(default_factory=dict)
    is_skipped: bool = False


def learning_rate_at(step: int, *, peak: float, num_steps: int, warmup_ratio: float) -> float:
    """Linear warm-up, then linear decay to 0 at `num_steps`; `step` counts from 0.

    >>> [learning_rate_at(s, peak=1.0, num_steps=4, warmup_ratio=0.5) for s in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(warmup_ratio * num_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (num_steps - step) / max(1, num_steps - warmup)


def fit(
    engine: Engine,
    encoder: Encoder,
    samples: Sequence[Sample],
    sampler: BatchSampler,
    *,
    task: StepTask,
    num_steps: int,
    first_step: int = 0,
    learning_rate: float,
    warmup_ratio: float,
    temperatures: TaskTemperatures | None = None,
    grad_cache: bool = False,
    tower_once: bool = True,
    chunk_rows: int = 256,
    max_chunk_tokens: int = 1 << 20,
    seed: int = 0,
    autocast: str = "none",
    picture_cache_bytes: int = 512 << 20,
    device_features_bytes: int = 4 << 30,
    num_threads: int = 1,
) -> Iterator[StepResult]:
    """Train until `num_steps`; yields after every optimizer step, and the caller logs, saves or stops.

    The sampler's batch is that of all processes together. Random numbers depend only on (seed, step, chunk of the whole
    batch): a run resumed at a step continues as the unbroken run would, and another number of processes draws
    the same numbers where it computes the same chunks.

    Args:
        engine: its optimizer's learning rate is set at every step.
        task: what the samples become, and their loss.
        temperatures: what the task learns beside the model, if it learns temperatures.
        grad_cache: keep the activations of one chunk only, at the cost of a second forward pass.
        tower_once: if no weight of the vision tower trains, run it once for each distinct picture of a step.
        chunk_rows, max_chunk_tokens: limits of one forward pass.
        picture_cache_bytes: most bytes of prepared pictures to keep between steps.
        device_features_bytes: most bytes of the vision tower's outputs of a step to keep on the device; the others are
            kept in host memory. (A picture of Llama-3.2-Vision: 52 MB in bfloat16.)
        num_threads: threads that decode pictures.

    Raises:
        FloatingPointError: on all processes alike: the loss is not finite, or the gradients of many steps in a row.
    """
    encoder.module.train()
    tower_once = tower_once and encoder.module.has_frozen_tower
    cache = PictureCache(encoder, picture_cache_bytes, num_threads=num_threads)
    batches = StepBatches(encoder, cache, task, chunk_rows, max_chunk_tokens, tower_once)
    tower_bytes = device_features_bytes if tower_once else None
    gradient = StepGradient(engine, encoder, grad_cache, autocast, tower_bytes)
    rate_at = partial(learning_rate_at, peak=learning_rate, num_steps=num_steps, warmup_ratio=warmup_ratio)
    skipped = _Skipped()
    for step, started, batch in batches.ahead(samples, sampler, range(first_step, num_steps), seed=seed):
        _set_learning_rate(engine, rate := rate_at(step))
        loss = gradient.backward(batch, step)
        grad_norm, learnt, is_skipped = _update(engine, temperatures)
        skipped.count(step + 1, is_skipped=is_skipped)
        seconds, combination = time.monotonic() - started, batch.modality_combination
        yield StepResult(
            step + 1, num_steps, loss, rate, grad_norm, batch.num_rows, seconds, combination, learnt, is_skipped
        )


class _Skipped:
    """Counts skipped steps in a row."""

    def __init__(self) -> None:
        self._num_in_a_row = 0

    def count(self, step: int, *, is_skipped: bool) -> None:
        """
        Raises:
            FloatingPointError: there are too many.
        """
        self._num_in_a_row = self._num_in_a_row + 1 if is_skipped else 0
        if self._num_in_a_row == MOST_SKIPPED:
            raise FloatingPointError(
                f"the gradients of {MOST_SKIPPED} steps in a row, to step {step}, are NaN or infinite: lower "
                "learning_rate or use float32"
            )


def _set_learning_rate(engine: Engine, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def _update(engine: Engine, temperatures: TaskTemperatures | None) -> tuple[float, dict[str, float], bool]:
    """One optimizer step.

    Returns:
        The gradient's norm (NaN if the engine does not compute it), the temperatures, and whether the step was skipped.
    """
    engine.step()
    is_skipped = was_skipped(engine)
    if temperatures is not None:
        _step_temperatures(temperatures, is_skipped=is_skipped)
    norm = None if is_skipped else engine.get_global_grad_norm()
    learnt = {} if temperatures is None else temperatures.by_task()
    return float(norm) if norm is not None else float("nan"), learnt, is_skipped


def _step_temperatures(temperatures: TaskTemperatures, *, is_skipped: bool) -> None:
    gradient = temperatures.logarithm.grad
    assert gradient is not None
    sum_over_processes(gradient)
    if is_skipped or not bool(torch.isfinite(gradient).all()):
        temperatures.optimizer.zero_grad(set_to_none=True)
    else:
        temperatures.step()
