"""The keys of `judge`."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from mme5core.asking.settings import BudgetSettings, PriceSettings
from mme5core.judge.settings import JudgeSettings, SelectionSettings
from mme5core.settings import key, required
from mme5core.web import ALLOW_HOSTS
from rayjobs.command.config import InputJobConfig, as_list


class ExportConfig(InputJobConfig):
    images: str | None = key(None, "folder that paths of the samples' pictures start from", path="existing")


class JudgeConfig(InputJobConfig):
    neighbours: str = required(
        "candidates as mine writes them: query_id is the id of a sample, candidate_id that of another sample, whose "
        "positive it means, or of a row of candidates",
        names_input=True,
        path="existing",
    )
    candidates: list[str] | None = key(
        None,
        "corpus of the candidates, as embed-corpus reads it; of files with two sides, the targets; null: positives of "
        "the samples",
        names_input=True,
    )
    judge: JudgeSettings = key(JudgeSettings(), "the model that judges")
    select: SelectionSettings = key(SelectionSettings(), "which candidates become hard negatives")
    samples_per_file: int = key(200, "samples of one output file, and what a killed worker may have to do again", ge=1)
    images: str | None = key(
        None, "folder that paths of the samples' pictures start from", added_later=True, path="existing"
    )
    pictures: str | None = key(
        None,
        "folder or address that paths of the candidates' pictures start from; null: their file's own folder",
        rows=False,
        path="existing",
    )
    allow_hosts: list[str] | None = key(None, ALLOW_HOSTS, rows=False)
    prices: PriceSettings = key(PriceSettings(), "what a served judge costs", rows=False)
    budget: BudgetSettings = key(BudgetSettings(), "what may be spent on a served judge", rows=False)

    @field_validator("candidates", mode="before")
    @classmethod
    def _one_candidate_is_a_list(cls, entries: Any) -> Any:
        return as_list(entries)
