"""The keys of `rerank` and of `rerank train`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from mme5core.model_settings import ModelSettings
from mme5core.reranker.settings import RerankerTraining
from mme5core.settings import key, required
from mme5core.web import ALLOW_HOSTS
from rayjobs.command.config import InputJobConfig, as_list
from rayjobs.training import RunConfig


class RerankConfig(ModelSettings, InputJobConfig):
    input: list[str] = required(
        "the queries: any corpus that embed-corpus reads; of files with two sides, the queries", names_input=True
    )
    candidates: list[str] | None = key(
        None, "the candidates, likewise; of files with two sides, the targets; null: those of input", names_input=True
    )
    neighbours: str = required(
        "candidates of each query, as mine writes them: query_id, candidate_id, rank",
        names_input=True,
        path="existing",
    )
    method: Literal["pointwise", "listwise"] = key(
        "pointwise", "ask about each candidate, or about all at once, by their numbers"
    )
    top_k: int = key(10, "candidates of a query that are reordered; the others follow in their order", ge=1, le=99)
    instruction: str | None = key(None, "what is asked for; of queries that bring none of their own")
    pictures: str | None = key(
        None,
        "folder or address that paths of pictures start from; null: their file's own folder",
        rows=False,
        path="existing",
    )
    allow_hosts: list[str] | None = key(None, ALLOW_HOSTS, rows=False)
    queries_per_file: int = key(200, "queries of one output file, and what a killed worker may have to do again", ge=1)

    @field_validator("candidates", mode="before")
    @classmethod
    def _one_candidate_is_a_list(cls, entries: Any) -> Any:
        return as_list(entries)


class RerankTrainConfig(RerankerTraining, RunConfig):
    pass
