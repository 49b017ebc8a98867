"""Judged hard negatives: judge input=samples/ neighbours=near/ judge.model=MODEL output=judged/"""

from __future__ import annotations

from typing import NoReturn

from rayjobs.command.job import Job, Verb
from rayjobs.command.main import main as run_command
from rayjobs.judge import export, job
from rayjobs.judge.config import ExportConfig, JudgeConfig
from rayjobs.judge.preview import preview

JOB = Job(
    "judge",
    {
        "": Verb(JudgeConfig, job.run, preview, needs_output=True),
        "export": Verb(ExportConfig, export.run, needs_output=True),
    },
)


def main() -> NoReturn:
    run_command(JOB)


if __name__ == "__main__":
    main()
