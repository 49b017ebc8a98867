"""The keys of `judge`."""

from __future__ import annotations

from mme5core.judge.settings import JudgeSettings, SelectionSettings
from mme5core.settings import key, required
from rayjobs.command.config import InputJobConfig


class JudgeConfig(InputJobConfig):
    neighbours: str = required(
        "candidates as mine writes them: query_id and candidate_id are ids of samples, and a candidate is the positive "
        "of its sample",
        names_input=True,
        path="existing",
    )
    judge: JudgeSettings = key(JudgeSettings(), "the model that judges")
    select: SelectionSettings = key(SelectionSettings(), "which candidates become hard negatives")
    samples_per_file: int = key(200, "samples of one output file, and what a killed worker may have to do again", ge=1)
