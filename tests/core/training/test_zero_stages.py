"""DeepSpeed under every ZeRO stage gives the loss and the gradient of one process without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mme5core.training.objective import Objective
from tests.core.training.exactness import Found, Setting, largest_difference, step, steps_on

OBJECTIVES = {
    "own": Objective(0.05),
    "all": Objective(0.05, negatives="all"),
    "symmetric, hardness, margin": Objective(0.05, symmetric=True, hardness=9.0, margin=("relative", 0.01)),
    "matryoshka": Objective(0.05, matryoshka_dims=(16, 128)),
    "soft labels": Objective(0.05, kind="soft_label_kl"),
}


def settings(base: Path, zero_stage: int) -> list[Setting]:
    """Every loss without and with a cache, with dropout, and two steps, so that the optimizer counts too."""
    return (
        [
            Setting(
                str(base),
                objective,
                "T2I" if name == "own" else "IT2IT",
                zero_stage=zero_stage,
                grad_cache=cache,
                dropout=0.3,
                chunk_rows=3,
                targets="language" if name == "matryoshka" else "all",
                num_steps=2,
            )
            for name, objective in OBJECTIVES.items()
            for cache in (False, True)
        ]
        + [
            # DoRA reads weights of the base outside of its layers.
            Setting(
                str(base),
                OBJECTIVES["own"],
                zero_stage=zero_stage,
                grad_cache=True,
                dropout=0.3,
                chunk_rows=3,
                num_steps=2,
                lora={"use_dora": True},
            ),
        ]
        + [
            # Steps with and without pictures, in which other weights get a gradient.
            Setting(str(base), OBJECTIVES["own"], "T2I+T2T", zero_stage=zero_stage, targets=targets, num_steps=4)
            for targets in ("all", "vision")
        ]
    )


@pytest.fixture(scope="module")
def alone(base: Path) -> list[Found]:
    """The same without DeepSpeed and in one process."""
    return [step(replace(setting, zero_stage=None)) for setting in settings(base, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_two_processes_give_the_losses_and_the_gradient_of_one(
    zero_stage: int, base: Path, alone: list[Found], tmp_path: Path
) -> None:
    # A second ZeRO-3 engine in one process is many times slower than the first: each gets processes of its own.
    batches = [[setting] for setting in settings(base, 3)] if zero_stage == 3 else [settings(base, zero_stage)]
    on_two = [found for n, part in enumerate(batches) for found in steps_on(2, part, tmp_path / f"processes{n}")]
    for setting, found, expected in zip(settings(base, zero_stage), on_two, alone, strict=True):
        for process in found:
            assert largest_difference(process, expected) < 1e-5, setting
