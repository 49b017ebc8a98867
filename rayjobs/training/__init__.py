"""A training run on the cluster: a step that several jobs share."""

from rayjobs.training.config import RunConfig
from rayjobs.training.inputs import Sources, check_run, preview_run, run_folder, sources_of
from rayjobs.training.run import run_training

__all__ = [
    "RunConfig",
    "Sources",
    "check_batches",
    "check_run",
    "preview_run",
    "run_folder",
    "run_training",
    "sources_of",
]
