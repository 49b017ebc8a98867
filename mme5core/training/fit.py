"""Contrastive training, one step at a time: the same loop in a Ray worker, a notebook and a test."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mme5core.adapters import weights_at_rest
from mme5core.backbones.protocol import Features, PictureInputs, without_pixels
from mme5core.batching import deal_chunks
from mme5core.content_key import document_key
from mme5core.distributed import rank, sum_over_processes, world_size
from mme5core.encoder import Encoder
from mme5core.encoder.prepare import PreparedBatch, batch_kind
from mme5core.encoder.prepare import picture_keys as picture_keys_of
from mme5core.training.gradcache import Engine, PlainEngine, contrastive_backward
from mme5core.training.objective import Labels, Objective, TaskTemperatures
from mme5core.training.sampling import BatchSampler
from mme5core.types import Content, Sample

__all__ = ["Engine", "PlainEngine", "StepResult", "fit", "learning_rate_at"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures of one optimizer step; `step` counts from 1, `loss` is that of the whole batch."""

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    rows: int
    seconds: float
    modality_combination: str
    temperatures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's batch on this process: its chunks, their distinct pictures by key, and the labels of all rows."""

    batches: list[PreparedBatch]
    pictures: dict[Hashable, PictureInputs]
    picture_keys: list[list[tuple[Hashable, ...]]]
    """For each chunk, the keys of each row's pictures; empty for a chunk of texts."""
    labels: Labels
    tasks: list[str]
    num_rows: int
    modality_combination: str


class PictureCache:
    """Prepared pictures by key; the least recently used are dropped first.

    Args:
        max_bytes: most bytes of tensors to keep.
        num_threads: threads that decode pictures.
    """

    def __init__(self, encoder: Encoder, max_bytes: int, *, num_threads: int = 1) -> None:
        self._encoder, self._max_bytes, self._num_bytes = encoder, max_bytes, 0
        self._kept: OrderedDict[Hashable, PictureInputs] = OrderedDict()
        self._threads = ThreadPoolExecutor(max_workers=num_threads)

    def get(self, places: Mapping[Hashable, tuple[Content, int]]) -> dict[Hashable, PictureInputs]:
        """The pictures by key, in the model's dtype.

        Args:
            places: for each key, a content that shows the picture, and the picture's place in it.
        """
        missing = [key for key in places if key not in self._kept]
        prepared = dict(zip(missing, self._threads.map(self._prepare, map(places.__getitem__, missing)), strict=True))
        pictures = {}
        for key in places:
            if key in self._kept:
                self._kept.move_to_end(key)
                pictures[key] = self._kept[key]
            else:
                pictures[key] = self._kept[key] = prepared[key]
                self._num_bytes += _num_bytes(prepared[key].values())
        while self._num_bytes > self._max_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._num_bytes -= _num_bytes(dropped.values())
        return pictures

    def _prepare(self, content_and_place: tuple[Content, int]) -> PictureInputs:
        dtype = next(self._encoder.module.parameters()).dtype
        inputs = self._encoder.prepare_picture(*content_and_place)
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


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
    objective: Objective,
    num_steps: int,
    first_step: int = 0,
    learning_rate: float,
    warmup_ratio: float,
    num_negatives: int,
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
        temperatures: learnable temperatures of the tasks, on the model's device; they replace the objective's.
        grad_cache: keep the activations of one chunk only, at the cost of a second forward pass.
        tower_once: if no weight of the vision tower trains, run it once for each distinct picture of a step.
        chunk_rows, max_chunk_tokens: limits of one forward pass.
        picture_cache_bytes: most bytes of prepared pictures to keep between steps.
        device_features_bytes: most bytes of the vision tower's outputs of a step to keep on the device; the others are
            kept in host memory. (A picture of Llama-3.2-Vision: 52 MB in bfloat16.)
        num_threads: threads that decode pictures.
    """
    encoder.module.train()
    tower_once = tower_once and encoder.module.has_frozen_tower
    cache = PictureCache(encoder, picture_cache_bytes, num_threads=num_threads)
    batches = StepBatches(encoder, cache, objective, num_negatives, chunk_rows, max_chunk_tokens, tower_once)
    loss_of = partial(_share, objective, temperatures, num_negatives)
    gradient = _Gradient(engine, encoder, loss_of, grad_cache, autocast, device_features_bytes if tower_once else None)
    rate_at = partial(learning_rate_at, peak=learning_rate, num_steps=num_steps, warmup_ratio=warmup_ratio)
    for step, started, batch in batches.ahead(samples, sampler, range(first_step, num_steps), seed=seed):
        rate = rate_at(step)
        _set_learning_rate(engine, rate)
        loss = gradient.backward(batch, step, num_contents=batch.num_rows * (2 + num_negatives))
        grad_norm, learnt = _update(engine, temperatures)
        seconds, combination = time.monotonic() - started, batch.modality_combination
        yield StepResult(step + 1, num_steps, loss, rate, grad_norm, batch.num_rows, seconds, combination, learnt)


@dataclass(frozen=True, slots=True)
class StepBatches:
    """Prepares this process's chunks of each step; `fit` documents the settings."""

    encoder: Encoder
    cache: PictureCache
    objective: Objective
    num_negatives: int
    chunk_rows: int
    max_chunk_tokens: int
    tower_once: bool

    def ahead(
        self, samples: Sequence[Sample], sampler: BatchSampler, steps: Sequence[int], *, seed: int
    ) -> Iterator[tuple[int, float, StepBatch]]:
        """(step, time at which the caller asked for it, its batch); a thread prepares the next step meanwhile."""

        def prepare_step(step: int) -> StepBatch:
            return self.prepare([samples[row] for row in sampler.batch(step)], seed=_seed(seed, step))

        with ThreadPoolExecutor(max_workers=1) as thread:
            # One step ahead: decoding and tokenising cost no time while an accelerator computes.
            following = thread.submit(prepare_step, steps[0]) if steps else None
            for step in steps:
                started = time.monotonic()
                assert following is not None
                batch = following.result()
                following = thread.submit(prepare_step, step + 1) if step + 1 in steps else None
                yield step, started, batch

    def prepare(self, samples: Sequence[Sample], *, seed: int) -> StepBatch:
        """This process's chunks of a batch.

        All processes plan the whole batch alike, but each decodes only the pictures of its own chunks.
        """
        contents, instructions = _contents(samples, self.num_negatives)
        token_ids = self.encoder.token_ids(contents, instructions)
        chunks = deal_chunks(
            [len(ids) for ids in token_ids],
            [batch_kind(self.encoder.backbone, content) for content in contents],
            max_rows=self.chunk_rows,
            max_chunk_tokens=self.max_chunk_tokens,
            num_processes=world_size(),
        )[rank()]
        pictures: dict[Hashable, PictureInputs] = {}
        batches, picture_keys = [], []
        for chunk in chunks:
            rows = [contents[row] for row in chunk.rows]
            keys = [picture_keys_of(self.encoder.backbone, content) for content in rows] if chunk.has_image else []
            pictures |= self._new_pictures(rows, keys, pictures)
            inputs = self._collate([token_ids[row] for row in chunk.rows], keys, pictures)
            batches.append(PreparedBatch(list(chunk.rows), inputs, seed=_seed(seed, chunk.number), weight=chunk.weight))
            picture_keys.append(keys)
        return StepBatch(
            batches,
            pictures if self.tower_once else {},  # else `inputs` hold the pixels
            picture_keys,
            _labels(samples, self.objective, self.num_negatives),
            [sample.task for sample in samples],
            len(samples),
            samples[0].modality_combination,
        )

    def _new_pictures(
        self,
        rows: Sequence[Content],
        keys: Sequence[Sequence[Hashable]],
        pictures: Mapping[Hashable, PictureInputs],
    ) -> dict[Hashable, PictureInputs]:
        """The pictures that the rows show and that are not in `pictures` yet."""
        return self.cache.get(
            {
                key: (content, place)
                for content, of_row in zip(rows, keys, strict=False)
                for place, key in enumerate(of_row)
                if key not in pictures
            }
        )

    def _collate(
        self,
        token_ids: Sequence[list[int]],
        keys: Sequence[Sequence[Hashable]],
        pictures: Mapping[Hashable, PictureInputs],
    ) -> dict[str, Tensor]:
        if not keys:
            return self.encoder.backbone.collate(token_ids, None)
        shown = {key: pictures[key] for of_row in keys for key in of_row}
        if self.tower_once:
            shown = {key: without_pixels(picture) for key, picture in shown.items()}
        return self.encoder.backbone.collate(token_ids, [[shown[key] for key in of_row] for of_row in keys])


@dataclass(frozen=True, slots=True)
class _Gradient:
    """Computes the gradient of a step's batch; `fit` documents the settings.

    `tower_bytes` is `device_features_bytes`, or None where the vision tower runs in every forward pass.
    """

    engine: Engine
    encoder: Encoder
    share: Callable[[StepBatch, Tensor, slice], Tensor]
    grad_cache: bool
    precision: str
    tower_bytes: int | None

    def backward(self, batch: StepBatch, step: int, *, num_contents: int) -> float:
        """Leave the gradient in the engine; returns the loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        autocast = partial(_autocast, self.precision, self.encoder.device)
        with weights_at_rest(self.encoder.module):
            prepared = batch.batches
            if self.tower_bytes is not None:
                prepared = _with_features(batch, self.encoder, autocast, self.tower_bytes)
            loss = contrastive_backward(
                self.engine,
                prepared,
                partial(self.share, batch),
                num_contents=num_contents,
                num_rows=batch.num_rows,
                width=self.encoder.dimension,
                cache=self.grad_cache,
                autocast=autocast,
            )
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step + 1}: lower learning_rate or use float32")
        return loss


def _set_learning_rate(engine: Engine, rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def _update(engine: Engine, temperatures: TaskTemperatures | None) -> tuple[float, dict[str, float]]:
    """One optimizer step; returns the gradient's norm (NaN if the engine does not compute it) and the temperatures."""
    engine.step()
    if temperatures is not None:
        _step_temperatures(temperatures)
    norm = engine.get_global_grad_norm()
    return float(norm) if norm is not None else float("nan"), {} if temperatures is None else temperatures.by_task()


def _contents(samples: Sequence[Sample], num_negatives: int) -> tuple[list[Content], list[str | None]]:
    """All contents of a batch: queries, then positives, then each query's negatives in turn."""
    contents = [sample.query for sample in samples] + [sample.positive for sample in samples]
    instructions = [sample.instruction for sample in samples]
    instructions += [sample.document_instruction for sample in samples]
    for sample in samples:
        contents += sample.negatives[:num_negatives]
        instructions += [sample.document_instruction] * num_negatives
    return contents, instructions


def _labels(samples: Sequence[Sample], objective: Objective, num_negatives: int) -> Labels:
    positive_ids = negative_ids = score_BC = None
    if objective.needs_ids:
        positive_ids = torch.tensor([_document_id(sample.positive) for sample in samples])
        if num_negatives:
            negative_ids = torch.tensor(
                [[_document_id(negative) for negative in sample.negatives[:num_negatives]] for sample in samples]
            )
    if objective.kind == "soft_label_kl":
        score_BC = torch.tensor([sample.scores[: 1 + num_negatives] for sample in samples])
    return Labels(positive_ids, negative_ids, score_BC)


def _document_id(content: Content) -> int:
    return int.from_bytes(document_key(content), "little", signed=True)


def _with_features(step_batch: StepBatch, encoder: Encoder, autocast: Any, device_bytes: int) -> list[PreparedBatch]:
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
            device_bytes -= sum(_num_bytes(feature) for feature in outputs)
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


def _share(
    objective: Objective,
    temperatures: TaskTemperatures | None,
    num_negatives: int,
    batch: StepBatch,
    vector_ND: Tensor,
    rows: slice,
) -> Tensor:
    """The share of some rows of the batch's loss, from the vectors of all its contents in the order of `_contents`."""
    num_rows, device = batch.num_rows, vector_ND.device
    query_BD, positive_BD = vector_ND[:num_rows], vector_ND[num_rows : 2 * num_rows]
    negative_BKD = vector_ND[2 * num_rows :].view(num_rows, num_negatives, -1) if num_negatives else None
    labels = Labels(
        *(
            None if label is None else label.to(device)
            for label in (batch.labels.positive_ids, batch.labels.negative_ids, batch.labels.scores)
        )
    )
    temperature = None if temperatures is None else temperatures(batch.tasks)
    return objective.share(query_BD, positive_BD, negative_BKD, labels, rows=rows, temperature=temperature)


def _step_temperatures(temperatures: TaskTemperatures) -> None:
    gradient = temperatures.logarithm.grad
    assert gradient is not None
    sum_over_processes(gradient)
    temperatures.step()


def _seed(*numbers: int) -> int:
    """A seed that depends on these numbers alone."""
    return hash(numbers) & 0x7FFF_FFFF


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
