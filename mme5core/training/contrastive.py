"""Contrastive training of an embedder: queries, positives and hard negatives, and the loss of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mme5core.content_key import document_key
from mme5core.encoder import Encoder
from mme5core.training.objective import Labels, Objective, TaskTemperatures
from mme5core.training.step_task import StepRows
from mme5core.types import Content, Sample


@dataclass(frozen=True, slots=True)
class ContrastiveTask:
    """
    Args:
        num_negatives: hard negatives of each query.
        temperatures: learnable temperatures of the tasks, on the model's device; they replace the objective's.
    """

    encoder: Encoder
    objective: Objective
    num_negatives: int
    temperatures: TaskTemperatures | None = None

    def rows(self, samples: Sequence[Sample], step: int) -> StepRows:
        contents, instructions = contents_of(samples, self.num_negatives)
        labels = labels_of(samples, self.objective, self.num_negatives)
        tasks = [sample.task for sample in samples]
        return StepRows(contents, self.encoder.token_ids(contents, instructions), partial(self._share, labels, tasks))

    def _share(self, labels: Labels, tasks: Sequence[str], vector_ND: Tensor, rows: slice) -> Tensor:
        """The share of some rows of the loss, from the vectors of all contents in the order of `contents_of`."""
        num_rows, num_negatives, device = len(tasks), self.num_negatives, vector_ND.device
        query_BD, positive_BD = vector_ND[:num_rows], vector_ND[num_rows : 2 * num_rows]
        negative_BKD = vector_ND[2 * num_rows :].view(num_rows, num_negatives, -1) if num_negatives else None
        on_device = Labels(
            *(
                None if label is None else label.to(device)
                for label in (labels.positive_ids, labels.negative_ids, labels.scores)
            )
        )
        temperature = None if self.temperatures is None else self.temperatures(tasks)
        return self.objective.share(query_BD, positive_BD, negative_BKD, on_device, rows=rows, temperature=temperature)


def contents_of(samples: Sequence[Sample], num_negatives: int) -> tuple[list[Content], list[str | None]]:
    """All contents of a batch: queries, then positives, then each query's negatives in turn."""
    contents = [sample.query for sample in samples] + [sample.positive for sample in samples]
    instructions = [sample.instruction for sample in samples]
    instructions += [sample.document_instruction for sample in samples]
    for sample in samples:
        contents += sample.negatives[:num_negatives]
        instructions += [sample.document_instruction] * num_negatives
    return contents, instructions


def labels_of(samples: Sequence[Sample], objective: Objective, num_negatives: int) -> Labels:
    """What the objective needs to know of the samples beside their vectors."""
    positive_ids = negative_ids = score_BC = None
    if objective.needs_positive_ids:
        positive_ids = torch.tensor([_document_id(sample.positive) for sample in samples])
    if objective.needs_negative_ids and num_negatives:
        negative_ids = torch.tensor(
            [[_document_id(negative) for negative in sample.negatives[:num_negatives]] for sample in samples]
        )
    if objective.needs_scores:
        score_BC = torch.tensor([sample.scores[: 1 + num_negatives] for sample in samples])
    return Labels(positive_ids, negative_ids, score_BC)


def _document_id(content: Content) -> int:
    return int.from_bytes(document_key(content), "little", signed=True)
