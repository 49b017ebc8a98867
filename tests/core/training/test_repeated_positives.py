"""Rows of a batch that have one positive are no negatives of one another, in every form of InfoNCE."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mme5core import Content
from mme5core.training.contrastive import labels_of
from mme5core.training.objective import Objective
from mme5core.types import Sample

LABELS = ["yes", "no", "yes", "maybe"]
POSITIVE = torch.tensor([0, 1, 0, 2])  # of each row, as a column of the distinct ones


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_column_that_repeats_a_rows_positive_is_masked(symmetric: bool) -> None:
    samples = [
        Sample(str(row), Content(f"question {row}"), Content(label), (Content("never"),), task="t")
        for row, label in enumerate(LABELS)
    ]
    objective = Objective(0.1, symmetric=symmetric)
    labels = labels_of(samples, objective, 1)
    torch.manual_seed(0)
    query, negative = F.normalize(torch.randn(4, 6), dim=1), F.normalize(torch.randn(4, 1, 6), dim=2)
    positive = F.normalize(torch.randn(3, 6), dim=1)[POSITIVE]
    share = objective.share(query, positive, negative, labels, rows=slice(0, 4))
    losses = []
    for row in range(4):
        others = [column for column in range(4) if POSITIVE[column] != POSITIVE[row]]
        documents = torch.stack([positive[row], *positive[others], negative[row, 0]])
        losses.append(-F.log_softmax(documents @ query[row] / 0.1, dim=0)[0])
        if symmetric:
            queries = torch.stack([query[row], *query[others]])
            losses.append(-F.log_softmax(queries @ positive[row] / 0.1, dim=0)[0])
    torch.testing.assert_close(share, torch.stack(losses).mean())
