"""The learning rate's course: linear up, linear down, 0 only after the last step; and processes that stay in step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mme5core.encoder import EmbeddingModel
from mme5core.training import step_gradient
from mme5core.training.fit import learning_rate_at
from mme5core.training.objective import Objective
from tests.core.training.exactness import Setting, largest_difference, step


def course(num_steps: int, warmup_ratio: float, peak: float = 1.0) -> list[float]:
    return [
        learning_rate_at(step, peak=peak, num_steps=num_steps, warmup_ratio=warmup_ratio) for step in range(num_steps)
    ]


def test_a_course_worked_by_hand() -> None:
    assert course(10, 0.3, peak=6.0) == pytest.approx([2, 4, 6, 6, 36 / 7, 30 / 7, 24 / 7, 18 / 7, 12 / 7, 6 / 7])


@pytest.mark.parametrize(("num_steps", "warmup_ratio", "num_warmup"), [(7, 0.5, 4), (20, 0.05, 1), (10, 0.01, 1)])
def test_the_warm_up_is_rounded_up_to_whole_steps(num_steps: int, warmup_ratio: float, num_warmup: int) -> None:
    rates = course(num_steps, warmup_ratio)
    assert rates[:num_warmup] == pytest.approx(np.arange(1, num_warmup + 1) / num_warmup)
    remaining = num_steps - num_warmup
    assert rates[num_warmup:] == pytest.approx(np.arange(remaining, 0, -1) / remaining)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert course(4, 0.0, peak=2.0) == pytest.approx([2.0, 1.5, 1.0, 0.5])


def test_all_warm_up_ends_at_the_peak() -> None:
    assert course(4, 1.0, peak=2.0) == pytest.approx([0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 33])
def test_no_step_is_taken_at_a_rate_of_0_or_above_the_peak(num_steps: int, warmup_ratio: float) -> None:
    rates = course(num_steps, warmup_ratio, peak=5e-6)
    assert 0 < min(rates) <= max(rates) == pytest.approx(5e-6)


def test_after_the_last_step_the_rate_is_0() -> None:
    assert learning_rate_at(33, peak=1.0, num_steps=33, warmup_ratio=0.1) == 0


def test_where_its_weights_are_sharded_the_tower_runs_as_often_as_on_the_process_that_needs_it_most(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run gathers the weights from all processes: one that ran it less often would wait for ever."""
    runs = 0
    features = EmbeddingModel.features

    def counted(*args: object) -> object:
        nonlocal runs
        runs += 1
        return features(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddingModel, "features", counted)
    setting = Setting(str(base), Objective(0.05), targets="language", chunk_rows=3)
    alone = step(setting)
    assert 0 < runs <= 7  # the pictures repeat

    def summed(tensor: Tensor) -> Tensor:
        return torch.ones_like(tensor) if tensor.dtype == torch.int32 else tensor  # another process has new ones always

    runs = 0
    monkeypatch.setattr(step_gradient, "sum_over_processes", summed)
    monkeypatch.setattr(EmbeddingModel, "has_sharded_tower", True)
    together = step(setting)
    assert runs == 48 // 3
    assert largest_difference(together, alone) < 1e-6
