"""Training samples from pictures: synth --config mme5 input=laion/ output=samples/ teacher.base_url=URL"""

from __future__ import annotations

from typing import NoReturn

from rayjobs.command.job import Job, Verb
from rayjobs.command.main import main as run_command
from rayjobs.synth import export, gallery, job
from rayjobs.synth.config import ExportConfig, GalleryConfig, SynthConfig
from rayjobs.synth.preview import preview

JOB = Job(
    "synth",
    {
        "": Verb(SynthConfig, job.run, preview, needs_output=True),
        "gallery": Verb(GalleryConfig, gallery.run),
        "export": Verb(ExportConfig, export.run),
    },
)


def main() -> NoReturn:
    run_command(JOB)


if __name__ == "__main__":
    main()
