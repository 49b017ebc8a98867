"""The keys of `evaluate`."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from mme5core.settings import Section, key, required
from rayjobs.command.config import JobConfig, as_list


class AlsoConfig(Section):
    input: list[str] | None = key(None, "vectors; null: those above")
    model: str | None = key(None, "model; null: the one above")
    benchmark: str | None = key(None, "benchmark; null: the one above")

    @field_validator("input", mode="before")
    @classmethod
    def _one_is_a_list(cls, entries: Any) -> Any:
        return as_list(entries)


class EvaluateConfig(JobConfig):
    input: list[str] | None = key(
        None,
        "vectors as embed-corpus writes them, or ranked candidates as rerank does: folder, file, glob or list",
        names_input=True,
    )
    model: str | None = key(
        None, "or a model, which embeds the benchmark here and now", names_input=True, path="existing"
    )
    benchmark: str = required("folder with queries.parquet and candidates.parquet", names_input=True)
    also: dict[str, AlsoConfig] = key({}, "further scores by name, each written to metrics-NAME.json")
    image_instruction: str | None = key(None, "for candidates that are pictures, where a model embeds them")
    max_batch_rows: int = key(
        32, "rows of one forward pass, where a model embeds", rows=False, ge=1, formerly="batch_size"
    )
    num_examples: int = key(12, "rankings shown with their pictures in the report", ge=0)
    title: str = key("", "heading of the report; empty: the benchmark's name")

    @field_validator("input", mode="before")
    @classmethod
    def _one_is_a_list(cls, entries: Any) -> Any:
        return as_list(entries)
