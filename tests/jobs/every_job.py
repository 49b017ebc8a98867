"""Every job's table of verbs, by the job's name, as `[project.scripts]` names them."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

from rayjobs.command.job import Job

ROOT = Path(__file__).resolve().parents[2]


def every_job() -> dict[str, Job]:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    jobs = {name: importlib.import_module(place.partition(":")[0]).JOB for name, place in scripts.items()}
    assert all(job.name == name for name, job in jobs.items())
    return jobs
