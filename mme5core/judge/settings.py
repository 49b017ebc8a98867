"""The settings of a judge and of what follows from its scores."""

from __future__ import annotations

from typing import Literal

from mme5core.model_settings import ModelSettings
from mme5core.settings import Section, key


class JudgeSettings(ModelSettings):
    """Of a judge in this cluster."""


class SelectionSettings(Section):
    """Which judged candidates become hard negatives; the defaults are UniME-V2's numbers."""

    beta: float = key(0.01, "candidates that score above the positive's score less this are left out", ge=0)
    step: int = key(5, "interval of the cyclic choice among the survivors", ge=1)
    count: int = key(10, "hard negatives of a sample", ge=1)
    fill: Literal["fewer", "published"] = key(
        "fewer",
        "where fewer survive: take fewer; published: repeat them, and where none survives draw at random with score 1",
    )
    min_positive_score: float | None = key(
        None, "refuse samples whose positive scores lower: 0.5 refuses those judged wrong; null: none", ge=0, le=1
    )
