"""A reranker from samples with hard negatives: rerank train input=judged/ model=base/ output=run/"""

from __future__ import annotations

from mme5core.hub import pinned
from mme5core.training.process_run import TrainingRun
from rayjobs.command.outcome import Outcome
from rayjobs.rerank.config import RerankTrainConfig
from rayjobs.rerank.inputs import TRAINING, check_training
from rayjobs.training import run_folder, run_training, sources_of

MOST_NEGATIVES = 99
"""Of a sample that are looked at for the hardest."""


def run(config: RerankTrainConfig) -> Outcome:
    # Processes may be replaced hours later; the hub's branch may move meanwhile.
    config = config.model_copy(update={"model": pinned(config.model)})
    sources = sources_of(config)
    check_training(config)
    with run_folder(TRAINING, config, sources) as folder:
        return run_training(
            config,
            folder,
            sources,
            _process,
            job="rerank train",
            num_negatives=MOST_NEGATIVES,
            least_negatives=1,
        )


def _process(run: TrainingRun, num_threads: int | None) -> None:
    from mme5core.reranker.training import load_reranker  # torch, which the driver does not need
    from mme5core.training.process import train_process

    train_process(run, load=load_reranker, num_threads=num_threads)
