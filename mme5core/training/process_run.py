"""What every process of a training run is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mme5core.training.settings import RunSettings


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One run.

    Args:
        folder, work: the job's folder, and its work folder.
        owner: the token of the run's driver (`ownership`): processes may outlive a killed one.
        fingerprint: of the run, which its checkpoints bear.
    """

    settings: RunSettings
    folder: Path
    work: Path
    owner: str
    fingerprint: str
    num_steps: int
