"""Reordered candidates: rerank input=queries/ candidates=corpus/ neighbours=near/ model=MODEL output=reranked/

A reranker from samples: rerank train input=judged/ model=base/ output=run/
"""

from __future__ import annotations

from typing import NoReturn

from rayjobs.command.job import Job, Verb
from rayjobs.command.main import main as run_command
from rayjobs.rerank import job, training
from rayjobs.rerank.config import RerankConfig, RerankTrainConfig
from rayjobs.rerank.preview import preview, preview_training

JOB = Job(
    "rerank",
    {
        "": Verb(RerankConfig, job.run, preview, needs_output=True),
        "train": Verb(RerankTrainConfig, training.run, preview_training, needs_output=True, has_section=True),
    },
)


def main() -> NoReturn:
    run_command(JOB)


if __name__ == "__main__":
    main()
