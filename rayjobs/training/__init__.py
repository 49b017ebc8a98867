"""A training run on the cluster: a step that several jobs share."""

from rayjobs.training.config import RunConfig
from rayjobs.training.inputs import Sources, check_batches, check_run, sources_of
from rayjobs.training.run import run_training

__all__ = ["RunConfig", "Sources", "check_batches", "check_run", "run_training", "sources_of"]
