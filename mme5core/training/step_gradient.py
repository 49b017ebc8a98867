"""The gradient of a step's batch, with the vision tower run once for each picture."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mme5core.adapters import weights_at_rest
from mme5core.backbones.protocol import Features, PictureInputs
from mme5core.distributed import sum_over_processes
from mme5core.encoder import Encoder
from mme5core.encoder.prepare import PreparedBatch
from mme5core.training.gradcache import Engine, contrastive_backward
from mme5core.training.picture_cache import num_bytes
from mme5core.training.step_batches import StepBatch


@dataclass(frozen=True, slots=True)
class StepGradient:
    """Computes the gradient of a step's batch; `fit` documents the settings.

    `tower_bytes` is `device_features_bytes`, or None where the vision tower runs in every forward pass.
    """

    engine: Engine
    encoder: Encoder
    grad_cache: bool
    precision: str
    tower_bytes: int | None

    def backward(self, batch: StepBatch, step: int) -> float:
        """Leave the gradient in the engine; returns the loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        autocast = partial(_autocast, self.precision, self.encoder.device)
        with weights_at_rest(self.encoder.module):
            prepared = batch.batches
            if self.tower_bytes is not None:
                prepared = with_features(batch, self.encoder, autocast, self.tower_bytes)
            loss = contrastive_backward(
                self.engine,
                prepared,
                batch.share,
                num_contents=batch.num_contents,
                num_rows=batch.num_rows,
                width=self.encoder.dimension,
                cache=self.grad_cache,
                autocast=autocast,
            )
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step + 1}: lower learning_rate or use float32")
        return loss


def with_features(step_batch: StepBatch, encoder: Encoder, autocast: Any, device_bytes: int) -> list[PreparedBatch]:
    """The chunks with the vision tower's outputs of their pictures; the pictures are removed from `step_batch`.

    For each chunk the tower runs over the pictures that no earlier chunk had, so that the limits of a chunk also limit
    the tower's memory.
    """
    seen: set[Hashable] = set()
    new_keys = []
    for keys in step_batch.picture_keys:
        new_keys.append([key for key in dict.fromkeys(key for of_row in keys for key in of_row) if key not in seen])
        seen.update(new_keys[-1])
    runs = [bool(new) for new in new_keys]
    if encoder.module.has_sharded_tower:
        # Every pass gathers the weights from all processes: where one has new pictures, all must run the tower.
        runs = sum_over_processes(torch.tensor(runs, dtype=torch.int32, device=encoder.device)).bool().tolist()
    features: dict[Hashable, Features] = {}
    batches = []
    pictures: list[PictureInputs] = []
    for batch, keys, new, run in zip(step_batch.batches, step_batch.picture_keys, new_keys, runs, strict=True):
        if run:
            pictures = [step_batch.pictures.pop(key) for key in new] or pictures[-1:]
            with torch.no_grad(), autocast():
                outputs = encoder.module.features(pictures)[: len(new)]
            device_bytes -= sum(num_bytes(feature) for feature in outputs)
            features |= zip(new, outputs if device_bytes >= 0 or not outputs else _in_host_memory(outputs), strict=True)
        of_rows = [[features[key] for key in of_row] for of_row in keys]
        batches.append(replace(batch, features=of_rows) if keys else batch)
    return batches


def _in_host_memory(features: Sequence[Features]) -> list[Features]:
    """Copies in host memory, pinned for a GPU.

    All of them share one block: the allocator would round each one up to a power of two, and keep it.
    """
    parts = [part for feature in features for part in feature]
    block = torch.empty(
        sum(part.numel() for part in parts), dtype=parts[0].dtype, pin_memory=parts[0].device.type == "cuda"
    )
    places = block.split([part.numel() for part in parts])
    copies = iter(
        [place.view(part.shape).copy_(part, non_blocking=True) for place, part in zip(places, parts, strict=True)]
    )
    return [tuple(next(copies) for _ in feature) for feature in features]


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))
