"""The keys of `demo`."""

from __future__ import annotations

from mme5core.settings import key
from rayjobs.command.config import JobConfig


class DemoConfig(JobConfig):
    output: str = key("runs/demo", "folder below which each job gets its own", rows=False, path="local")
    cache: str = key("~/.cache/mme5", "where the trained base model is kept between demos", rows=False, path="local")
    base_steps: int = key(520, "training steps of the base model", rows=False, ge=1)
    base_batch_size: int = key(512, "pictures in one step of the base model", rows=False, ge=2)
    num_workers: int = key(2, "training processes of the train job", rows=False, ge=1)
    teacher_port: int = key(0, "port of `demo teacher`; 0: a free one", rows=False, ge=0)


class FullDemoConfig(DemoConfig):
    seeds: list[int] = key([0, 1, 2], "of the trainings that are compared")
    num_steps: int = key(50, "steps of each of them", ge=1)
    num_negatives: int = key(2, "hard negatives of a sample, where they are mined or judged", ge=1)
    judge_steps: int = key(240, "steps of the judge's training", ge=1)
