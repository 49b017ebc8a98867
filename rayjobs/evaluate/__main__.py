"""Scores of vectors or of a model on a benchmark: evaluate benchmark=bench/ input=vectors/ output=scores/"""

from __future__ import annotations

from typing import NoReturn

from rayjobs.command.job import Job, Verb
from rayjobs.command.main import main as run_command
from rayjobs.evaluate import job
from rayjobs.evaluate.config import EvaluateConfig
from rayjobs.evaluate.preview import preview

JOB = Job("evaluate", {"": Verb(EvaluateConfig, job.run, preview, needs_output=True)})


def main() -> NoReturn:
    run_command(JOB)


if __name__ == "__main__":
    main()
