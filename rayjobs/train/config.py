"""The keys of `train`."""

from __future__ import annotations

from mme5core.training.settings import TrainingSettings
from rayjobs.training import RunConfig


class TrainConfig(TrainingSettings, RunConfig):
    pass
