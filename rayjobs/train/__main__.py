"""A LoRA-trained embedding model from samples: train --config mme5 input=samples/ model=base/ output=run/"""

from __future__ import annotations

from typing import NoReturn

from rayjobs.command.job import Job, Verb
from rayjobs.command.main import main as run_command
from rayjobs.train import job
from rayjobs.train.config import TrainConfig
from rayjobs.train.preview import preview

JOB = Job("train", {"": Verb(TrainConfig, job.run, preview, needs_output=True)})


def main() -> NoReturn:
    run_command(JOB)


if __name__ == "__main__":
    main()
