"""The whole path on a real corpus, on this machine's CPU: demo --config demo [output=runs/demo]"""

from __future__ import annotations

from typing import NoReturn

from rayjobs.command.job import Job, Verb
from rayjobs.command.main import main as run_command
from rayjobs.demo import full, job, teacher
from rayjobs.demo.config import DemoConfig, FullDemoConfig

JOB = Job(
    "demo",
    {
        "": Verb(DemoConfig, job.run, needs_output=True),
        "full": Verb(FullDemoConfig, full.run, needs_output=True),
        "teacher": Verb(DemoConfig, teacher.serve_teacher),
    },
)


def main() -> NoReturn:
    run_command(JOB)


if __name__ == "__main__":
    main()
