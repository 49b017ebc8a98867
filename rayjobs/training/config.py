"""The keys of every training run: its settings, and how the processes run."""

from __future__ import annotations

from mme5core.settings import key
from mme5core.training.settings import RunSettings
from rayjobs.command.config import InputJobConfig


class RunConfig(RunSettings, InputJobConfig):
    use_gpu: bool | None = key(None, "one accelerator per worker; null: if the cluster has any", rows=False)
    images: str | None = key(
        None, "folder that paths of the samples' pictures start from", added_later=True, path="existing"
    )
    max_failures: int = key(2, "restarts after a lost worker, before the job fails", rows=False, ge=0)
