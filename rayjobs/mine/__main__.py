"""Nearest candidates between two sets of vectors: mine queries=vectors/ candidates=vectors/ output=near/ top_k=50"""

from __future__ import annotations

from typing import NoReturn

from rayjobs.command.job import Job, Verb
from rayjobs.command.main import main as run_command
from rayjobs.mine import export, job
from rayjobs.mine.config import ExportConfig, MineConfig
from rayjobs.mine.preview import preview

JOB = Job(
    "mine",
    {
        "": Verb(MineConfig, job.run, preview, needs_output=True),
        "export": Verb(ExportConfig, export.run, needs_output=True),
    },
)


def main() -> NoReturn:
    run_command(JOB)


if __name__ == "__main__":
    main()
