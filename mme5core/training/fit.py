"""Contrastive training, one step at a time: the same loop in a Ray worker, a notebook and a test."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
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
from mme5core.encoder.prepare import PreparedBatch, batch_kind, picture_keys
from mme5core.training.gradcache import Engine, PlainEngine, contrastive_backward
from mme5core.training.objective import Labels, Objective, TaskTemperatures
from mme5core.training.sampling import BatchSampler
from mme5core.types import Content, Sample

__all__ = ["Engine", "PlainEngine", "StepResult", "fit", "learning_rate_at"]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did; `step` counts from 1, `loss` is that of the whole batch."""

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
class Contrast:
    """One step's batch on this process: its chunks, their distinct pictures by key, and the labels of all rows."""

    batches: list[PreparedBatch]
    pictures: dict[Hashable, PictureInputs]
    picture_keys: list[list[tuple[Hashable, ...]]]
    """For each chunk the keys of each row's pictures; empty for a chunk of texts."""
    labels: Labels
    tasks: list[str]
    num_rows: int
    modality_combination: str


class PictureCache:
    """Prepared pictures by content, the least recently used dropped first.

    Args:
        max_bytes: tensors kept at most; a demo's pictures fit, a real corpus's do not and need not.
        num_threads: that decode pictures side by side.
    """

    def __init__(self, encoder: Encoder, max_bytes: int, *, num_threads: int = 1) -> None:
        self._encoder, self._max_bytes, self._num_bytes = encoder, max_bytes, 0
        self._kept: OrderedDict[Hashable, PictureInputs] = OrderedDict()
        self._threads = ThreadPoolExecutor(max_workers=num_threads)

    def get(self, places: Mapping[Hashable, tuple[Content, int]]) -> dict[Hashable, PictureInputs]:
        """The pictures by key, in the model's dtype.

        Args:
            places: for each key a content that shows the picture, and the picture's place in it.
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
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


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

    The batch is the sampler's, however many processes share its work. Randomness follows from (seed, step, chunk of
    the whole batch), so that a run resumed at a step goes on as the unbroken one, and other numbers of processes
    see the same wherever the chunks are the same.

    Args:
        engine: the learning rate of its optimizer is set at every step.
        temperatures: learnt beside the model, one for each task, in place of the objective's; on its device.
        grad_cache: keep the activations of one chunk only, at the price of a second forward pass.
        tower_once: where nothing in the vision tower trains, run it once for each distinct picture of a step.
        chunk_rows, max_chunk_tokens: of one forward pass at most.
        picture_cache_bytes: prepared pictures kept from step to step.
        device_features_bytes: what the tower gives for a step stays on the device up to this size, the rest in the
            host's memory. (A picture of Llama-3.2-Vision: 52 MB in bfloat16.)
        num_threads: that decode pictures beside the training.
    """
    cache = PictureCache(encoder, picture_cache_bytes, num_threads=num_threads)
    encoder.module.train()
    tower_once = tower_once and encoder.module.has_frozen_tower
    prepare = partial(
        _prepare,
        encoder=encoder,
        cache=cache,
        objective=objective,
        num_negatives=num_negatives,
        chunk_rows=chunk_rows,
        max_chunk_tokens=max_chunk_tokens,
        tower_once=tower_once,
    )

    def prepare_step(step: int) -> Contrast:
        return prepare([samples[row] for row in sampler.batch(step)], seed=_seed(seed, step))

    with ThreadPoolExecutor(max_workers=1) as ahead:
        # One step ahead: decoding and tokenising cost nothing where an accelerator does the rest.
        coming = ahead.submit(prepare_step, first_step) if first_step < num_steps else None
        for step in range(first_step, num_steps):
            started = time.monotonic()
            assert coming is not None
            contrast = coming.result()
            coming = ahead.submit(prepare_step, step + 1) if step + 1 < num_steps else None
            rate = learning_rate_at(step, peak=learning_rate, num_steps=num_steps, warmup_ratio=warmup_ratio)
            for group in engine.optimizer.param_groups:
                group["lr"] = rate
            amp = partial(_autocast, autocast, encoder.device)
            with weights_at_rest(encoder.module):
                loss = contrastive_backward(
                    engine,
                    _with_features(contrast, encoder, amp, device_features_bytes) if tower_once else contrast.batches,
                    partial(_share, contrast, objective, temperatures, num_negatives),
                    num_contents=contrast.num_rows * (2 + num_negatives),
                    num_rows=contrast.num_rows,
                    width=encoder.dimension,
                    cache=grad_cache,
                    autocast=amp,
                )
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step + 1}: lower learning_rate or use float32")
            engine.step()
            if temperatures is not None:
                _step_temperatures(temperatures)
            norm = engine.get_global_grad_norm()
            yield StepResult(
                step + 1,
                num_steps,
                loss,
                rate,
                float(norm) if norm is not None else float("nan"),
                contrast.num_rows,
                time.monotonic() - started,
                contrast.modality_combination,
                temperatures.by_task() if temperatures is not None else {},
            )


def _prepare(
    samples: Sequence[Sample],
    *,
    encoder: Encoder,
    cache: PictureCache,
    objective: Objective,
    num_negatives: int,
    chunk_rows: int,
    max_chunk_tokens: int,
    tower_once: bool,
    seed: int,
) -> Contrast:
    """This process's chunks of a batch. All plan the whole batch alike, but only one decodes a row's pictures."""
    contents, instructions = _contents(samples, num_negatives)
    token_ids = encoder.token_ids(contents, instructions)
    chunks = deal_chunks(
        [len(ids) for ids in token_ids],
        [batch_kind(encoder.backbone, content) for content in contents],
        max_rows=chunk_rows,
        max_chunk_tokens=max_chunk_tokens,
        num_processes=world_size(),
    )[rank()]
    batches, pictures, keys_of_chunks = [], dict[Hashable, PictureInputs](), []
    for chunk in chunks:
        keys = [picture_keys(encoder.backbone, contents[row]) for row in chunk.rows] if chunk.has_image else []
        new = {
            key: (contents[row], place)
            for row, of_row in zip(chunk.rows, keys, strict=False)
            for place, key in enumerate(of_row)
            if key not in pictures
        }
        pictures |= cache.get(new)
        shown = {key: without_pixels(pictures[key]) if tower_once else pictures[key] for row in keys for key in row}
        prepared = [[shown[key] for key in of_row] for of_row in keys] if chunk.has_image else None
        inputs = encoder.backbone.collate([token_ids[row] for row in chunk.rows], prepared)
        batches.append(PreparedBatch(list(chunk.rows), inputs, seed=_seed(seed, chunk.number), weight=chunk.weight))
        keys_of_chunks.append(keys)
    return Contrast(
        batches,
        pictures if tower_once else {},  # else the batches hold their pixels
        keys_of_chunks,
        _labels(samples, objective, num_negatives),
        [sample.task for sample in samples],
        len(samples),
        samples[0].modality_combination,
    )


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


def _with_features(contrast: Contrast, encoder: Encoder, autocast: Any, device_bytes: int) -> list[PreparedBatch]:
    """The chunks with what the tower makes of their pictures, which are let go one chunk after the other.

    The tower runs over a chunk's pictures that no chunk before it had, so that a chunk bounds its memory too.
    """
    seen: set[Hashable] = set()
    new_of = []
    for keys in contrast.picture_keys:
        new_of.append([key for key in dict.fromkeys(key for of_row in keys for key in of_row) if key not in seen])
        seen.update(new_of[-1])
    runs = [bool(new) for new in new_of]
    if encoder.module.has_sharded_tower:
        # Every pass gathers the weights from all processes: where one has new pictures, all must run the tower.
        runs = sum_over_processes(torch.tensor(runs, dtype=torch.int32, device=encoder.device)).bool().tolist()
    features: dict[Hashable, Features] = {}
    batches = []
    pictures: list[PictureInputs] = []
    for batch, keys, new, run in zip(contrast.batches, contrast.picture_keys, new_of, runs, strict=True):
        if run:
            pictures = [contrast.pictures.pop(key) for key in new] or pictures[-1:]
            with torch.no_grad(), autocast():
                made = encoder.module.features(pictures)[: len(new)]
            device_bytes -= sum(_num_bytes(feature) for feature in made)
            features |= zip(new, made if device_bytes >= 0 or not made else _in_host_memory(made), strict=True)
        of_rows = [[features[key] for key in of_row] for of_row in keys]
        batches.append(replace(batch, features=of_rows) if keys else batch)
    return batches


def _in_host_memory(features: Sequence[Features]) -> list[Features]:
    """Copies there, on pages that the device reads without waiting for the processor.

    One block for all of them: the allocator rounds each up to a power of two, and keeps it.
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
    contrast: Contrast,
    objective: Objective,
    temperatures: TaskTemperatures | None,
    num_negatives: int,
    vector_ND: Tensor,
    rows: slice,
) -> Tensor:
    num_rows, device = contrast.num_rows, vector_ND.device
    query_BD, positive_BD = vector_ND[:num_rows], vector_ND[num_rows : 2 * num_rows]
    negative_BKD = vector_ND[2 * num_rows :].view(num_rows, num_negatives, -1) if num_negatives else None
    labels = Labels(
        *(
            None if value is None else value.to(device)
            for value in (contrast.labels.positive_ids, contrast.labels.negative_ids, contrast.labels.scores)
        )
    )
    temperature = None if temperatures is None else temperatures(contrast.tasks)
    return objective.share(query_BD, positive_BD, negative_BKD, labels, rows=rows, temperature=temperature)


def _step_temperatures(temperatures: TaskTemperatures) -> None:
    gradient = temperatures.logarithm.grad
    assert gradient is not None
    sum_over_processes(gradient)
    temperatures.step()


def _seed(*numbers: int) -> int:
    """A seed that is a function of these numbers alone."""
    return hash(numbers) & 0x7FFF_FFFF


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
