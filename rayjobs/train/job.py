"""A LoRA-trained embedding model from samples: train --config mme5 input=samples/ model=base/ output=run/"""

from __future__ import annotations

from mme5core.hub import pinned
from mme5core.training.process_run import TrainingRun
from rayjobs.command.outcome import Outcome
from rayjobs.train.config import TrainConfig
from rayjobs.train.inputs import check
from rayjobs.training import run_folder, run_training, sources_of


def run(config: TrainConfig) -> Outcome:
    # Processes may be replaced hours later; the hub's branch may move meanwhile.
    config = config.model_copy(update={"model": pinned(config.model)})
    sources = sources_of(config)
    check(config)
    with run_folder("train", config, sources) as folder:
        return run_training(
            config,
            folder,
            sources,
            _process,
            job="train",
            num_negatives=config.num_negatives,
            needs_scores=config.loss.kind != "info_nce",
        )


def _process(run: TrainingRun, num_threads: int | None) -> None:
    from mme5core.training.process import train_process  # torch, which the driver does not need

    train_process(run, num_threads=num_threads)
