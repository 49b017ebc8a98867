"""Contrastive training, one step at a time: the same loop in a Ray worker, a notebook and a test."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mme5core.backbones.protocol import PictureInputs
from mme5core.distributed import mean_over_processes, rank, world_size
from mme5core.encoder import Encoder, PreparedBatch
from mme5core.images import image_hash
from mme5core.losses import Negatives, info_nce
from mme5core.sampling import BatchSampler
from mme5core.types import Content, Sample


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did; `step` counts from 1, `loss` is the mean over all processes."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    rows: int
    seconds: float
    modality_combination: str


class Engine(Protocol):
    """What wraps the module for training: DeepSpeed's engine, or `PlainEngine`."""

    def __call__(self, batches: list[PreparedBatch]) -> Tensor: ...
    def backward(self, loss: Tensor) -> Any: ...
    def step(self) -> Any: ...
    def get_global_grad_norm(self) -> Any: ...


class PlainEngine:
    """One process, one optimizer: the reference that the others are checked against."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, max_grad_norm: float) -> None:
        self.module, self.optimizer, self._max_grad_norm = module, optimizer, max_grad_norm
        self._grad_norm = 0.0

    def __call__(self, batches: list[PreparedBatch]) -> Tensor:
        vectors: Tensor = self.module(batches)
        return vectors

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._grad_norm = float(nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def get_global_grad_norm(self) -> float:
        return self._grad_norm


class PictureCache:
    """Prepared pictures by content, the least recently used dropped first.

    Args:
        max_bytes: tensors kept at most; a demo's pictures fit, a real corpus's do not and need not.
    """

    def __init__(self, encoder: Encoder, max_bytes: int) -> None:
        self._encoder, self._max_bytes, self._num_bytes = encoder, max_bytes, 0
        self._kept: OrderedDict[str, PictureInputs] = OrderedDict()

    def get(self, content: Content) -> PictureInputs | None:
        if content.image is None:
            return None
        key = image_hash(content.image)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        inputs = self._encoder.prepare_picture(content)
        self._kept[key] = inputs
        self._num_bytes += _num_bytes(inputs)
        while self._num_bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._num_bytes -= _num_bytes(dropped)
        return inputs


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
    optimizer: Any,
    encoder: Encoder,
    samples: Sequence[Sample],
    sampler: BatchSampler,
    *,
    num_steps: int,
    first_step: int = 0,
    learning_rate: float,
    warmup_ratio: float,
    temperature: float,
    num_negatives: int,
    negatives: Negatives = "own",
    chunk_rows: int = 256,
    max_chunk_tokens: int = 1 << 20,
    seed: int = 0,
    autocast: str = "none",
    picture_cache_bytes: int = 512 << 20,
) -> Iterator[StepResult]:
    """Train until `num_steps`; yields after every optimizer step, and the caller logs, saves or stops.

    Every process gives its equal share of each batch. Randomness in a step follows from (seed, step, rank), so that
    a run resumed at a step goes on as the unbroken one.

    Args:
        optimizer: whose learning rate is set at every step.
        chunk_rows: rows of one forward pass at most.
    """
    cache = PictureCache(encoder, picture_cache_bytes)
    encoder.module.train()

    def prepare(step: int) -> tuple[list[PreparedBatch], int, str]:
        rows = sampler.batch(step)
        share = len(rows) // world_size()
        mine = [samples[row] for row in rows[rank() * share : (rank() + 1) * share]]
        batches = _prepare(mine, encoder, cache, num_negatives, chunk_rows, max_chunk_tokens)
        return batches, share, mine[0].modality_combination

    with ThreadPoolExecutor(max_workers=1) as ahead:
        # One step ahead: decoding and tokenising cost nothing where an accelerator does the rest.
        coming = ahead.submit(prepare, first_step) if first_step < num_steps else None
        for step in range(first_step, num_steps):
            started = time.monotonic()
            assert coming is not None
            batches, share, combination = coming.result()
            coming = ahead.submit(prepare, step + 1) if step + 1 < num_steps else None
            rate = learning_rate_at(step, peak=learning_rate, num_steps=num_steps, warmup_ratio=warmup_ratio)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(hash((seed, step, rank())) & 0x7FFF_FFFF)
            on_device = [PreparedBatch(b.rows, encoder.to_device(b.inputs)) for b in batches]
            with _autocast(autocast, encoder.device):
                vector_ND = engine(on_device)
            query_BD, positive_BD, negative_BKD = _split(vector_ND, share, num_negatives)
            loss = info_nce(query_BD, positive_BD, negative_BKD, temperature=temperature, negatives=negatives)
            engine.backward(loss)
            engine.step()
            value = mean_over_processes(loss.item())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step + 1}: lower learning_rate or use float32")
            norm = engine.get_global_grad_norm()
            yield StepResult(
                step + 1,
                num_steps,
                value,
                rate,
                float(norm) if norm is not None else float("nan"),
                share * world_size(),
                time.monotonic() - started,
                combination,
            )


def _prepare(
    samples: Sequence[Sample],
    encoder: Encoder,
    cache: PictureCache,
    num_negatives: int,
    chunk_rows: int,
    max_chunk_tokens: int,
) -> list[PreparedBatch]:
    """All contents of one process's share: queries, then positives, then each query's negatives in turn."""
    contents = [sample.query for sample in samples] + [sample.positive for sample in samples]
    instructions = [sample.instruction for sample in samples]
    instructions += [sample.document_instruction for sample in samples]
    for sample in samples:
        contents += sample.negatives[:num_negatives]
        instructions += [sample.document_instruction] * num_negatives
    return list(
        encoder.batches(
            contents,
            instructions,
            batch_size=chunk_rows,
            max_batch_tokens=max_chunk_tokens,
            picture_inputs=[cache.get(content) for content in contents],
        )
    )


def _split(vector_ND: Tensor, num_rows: int, num_negatives: int) -> tuple[Tensor, Tensor, Tensor | None]:
    query_BD, positive_BD = vector_ND[:num_rows], vector_ND[num_rows : 2 * num_rows]
    if not num_negatives:
        return query_BD, positive_BD, None
    return query_BD, positive_BD, vector_ND[2 * num_rows :].view(num_rows, num_negatives, -1)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def _num_bytes(inputs: PictureInputs) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs.values())
