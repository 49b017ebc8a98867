"""The loss of a run is the one that its settings name, with their numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mme5core.losses import distillation, info_nce, soft_label_kl
from mme5core.training.loaded import objective_of
from mme5core.training.objective import Labels, Objective
from mme5core.training.settings import LossSettings, TrainingSettings

ROWS = slice(0, 4)


def batch() -> tuple[Any, ...]:
    """Unit vectors of 4 queries, their positives and 3 negatives each, and scores."""
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(*shape, generator=generator) for shape in ((4, 8), (4, 8), (4, 3, 8))]
    query, positive, negative = (torch.nn.functional.normalize(part, dim=-1) for part in vectors)
    return query, positive, negative, Labels(scores=torch.rand(4, 4, generator=generator))


@pytest.mark.parametrize("divergence", ["symmetric_kl", "jensen_shannon"])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_soft_labels_take_their_divergence_their_floor_and_a_weight_of_the_batch(
    divergence: Any, eps: float, weight: float
) -> None:
    query, positive, negative, labels = batch()
    objective = Objective(0.1, kind="soft_label_kl", divergence=divergence, eps=eps, in_batch_weight=weight)
    candidates = torch.cat([positive[:, None], negative], dim=1)
    soft = soft_label_kl(query, candidates, labels.scores, temperature=0.1, eps=eps, divergence=divergence)
    expected = soft + weight * info_nce(query, positive, negative, temperature=0.1, rows=ROWS)
    loss = objective.share(query, positive, negative, labels, rows=ROWS)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert objective.needs_positive_ids == (weight > 0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_distillation_takes_the_log_odds_of_the_stored_scores(symmetric: bool, weight: float) -> None:
    query, positive, negative, labels = batch()
    objective = Objective(
        0.1, kind="distillation", symmetric=symmetric, teacher_temperature=2.0, in_batch_weight=weight
    )
    candidates = torch.cat([positive[:, None], negative], dim=1)
    odds = torch.log(labels.scores / (1 - labels.scores))
    soft = distillation(query, candidates, odds, temperature=0.1, teacher_temperature=2.0, symmetric=symmetric)
    in_batch = info_nce(query, positive, negative, temperature=0.1, symmetric=symmetric, rows=ROWS)
    loss = objective.share(query, positive, negative, labels, rows=ROWS)
    assert loss.item() == pytest.approx((soft + weight * in_batch).item(), rel=1e-4)
    sure = Labels(scores=torch.tensor([[1.0, 0.0, 0.0, 1.0]] * 4))
    assert bool(torch.isfinite(objective.share(query, positive, negative, sure, rows=ROWS)))


def test_every_setting_of_the_loss_reaches_the_objective() -> None:
    loss = LossSettings(
        kind="soft_label_kl",
        divergence="jensen_shannon",
        eps=1e-5,
        in_batch_weight=0.25,
        teacher_temperature=2.0,
        symmetric=True,
        hardness=2.0,
        margin=0.1,
        margin_kind="relative",
        margin_spares_own=True,
        matryoshka_dims=[4],
    )
    settings = TrainingSettings(model="base", temperature=0.3, negatives="all", loss=loss)
    assert objective_of(settings) == Objective(
        0.3,
        kind="soft_label_kl",
        negatives="all",
        symmetric=True,
        hardness=2.0,
        margin=("relative", 0.1),
        margin_spares_own=True,
        matryoshka_dims=(4,),
        divergence="jensen_shannon",
        eps=1e-5,
        in_batch_weight=0.25,
        teacher_temperature=2.0,
    )
