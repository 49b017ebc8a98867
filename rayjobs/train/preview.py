"""What `train` would do: samples, steps, output."""

from __future__ import annotations

from rayjobs.train.config import TrainConfig
from rayjobs.train.inputs import check
from rayjobs.training import preview_run, run_folder, sources_of


def preview(config: TrainConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    sources = sources_of(config)
    check(config)
    return preview_run(config, sources, run_folder("train", config, sources))
