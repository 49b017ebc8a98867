"""What one process runs through the model in a step: its chunks of the batch, and their pictures."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from mme5core.backbones.protocol import PictureInputs, without_pixels
from mme5core.batching import deal_chunks
from mme5core.distributed import rank, world_size
from mme5core.encoder import Encoder
from mme5core.encoder.prepare import PreparedBatch, batch_kind
from mme5core.encoder.prepare import picture_keys as picture_keys_of
from mme5core.training.gradcache import ShareOfLoss
from mme5core.training.picture_cache import PictureCache
from mme5core.training.sampling import BatchSampler
from mme5core.training.step_task import StepTask
from mme5core.types import Content, Sample


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step's batch on this process: its chunks, their distinct pictures by key, and the loss of the whole batch."""

    batches: list[PreparedBatch]
    pictures: dict[Hashable, PictureInputs]
    picture_keys: list[list[tuple[Hashable, ...]]]
    """For each chunk, the keys of each row's pictures; empty for a chunk of texts."""
    share: ShareOfLoss
    num_contents: int
    num_rows: int
    modality_combination: str


@dataclass(frozen=True, slots=True)
class StepBatches:
    """Prepares this process's chunks of each step; `fit` documents the settings."""

    encoder: Encoder
    cache: PictureCache
    task: StepTask
    chunk_rows: int
    max_chunk_tokens: int
    tower_once: bool

    def ahead(
        self, samples: Sequence[Sample], sampler: BatchSampler, steps: Sequence[int], *, seed: int
    ) -> Iterator[tuple[int, float, StepBatch]]:
        """(step, time at which the caller asked for it, its batch); a thread prepares the next step meanwhile."""

        def prepare_step(step: int) -> StepBatch:
            return self.prepare([samples[row] for row in sampler.batch(step)], step, seed=_seed(seed, step))

        with ThreadPoolExecutor(max_workers=1) as thread:
            # One step ahead: decoding and tokenising cost no time while an accelerator computes.
            following = thread.submit(prepare_step, steps[0]) if steps else None
            for step in steps:
                started = time.monotonic()
                assert following is not None
                batch = following.result()
                following = thread.submit(prepare_step, step + 1) if step + 1 in steps else None
                yield step, started, batch

    def prepare(self, samples: Sequence[Sample], step: int, *, seed: int) -> StepBatch:
        """This process's chunks of a batch.

        All processes plan the whole batch alike, but each decodes only the pictures of its own chunks.
        """
        of_step = self.task.rows(samples, step)
        contents, token_ids = of_step.contents, of_step.token_ids
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
            of_step.share,
            len(contents),
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


def _seed(*numbers: int) -> int:
    """A seed that depends on these numbers alone."""
    return hash(numbers) & 0x7FFF_FFFF
