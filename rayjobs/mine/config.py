"""The keys of `mine`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from mme5core.settings import Section, key, required
from rayjobs.command.config import JobConfig, as_list


class FaissSettings(Section):
    index: str | None = key(
        None, "FAISS's factory string; null: inverted lists, vectors in half precision", added_later=True
    )
    num_probed: int = key(32, "inverted lists that a query looks into", added_later=True, ge=1)
    shortlist: int = key(
        4, "candidates for each that is ranked, which are then compared exactly", added_later=True, ge=1
    )


class MineConfig(JobConfig):
    queries: list[str] = required(
        "vectors of the queries: folder, file, glob or list of Parquet with id and embedding", names_input=True
    )
    candidates: list[str] = required("vectors of the candidates; may be the same", names_input=True)
    top_k: int = key(50, "most neighbours of a query by each rule", ge=1)
    rules: list[str] = key(
        [],
        "named rules, whose rows are united: mme5, unime-v2, megapairs, nv-retriever, mm-embed-modality, mm-embed-far; "
        "none: the keys below",
    )
    min_rank: int = key(1, "first rank that is taken; ranks count by falling score", ge=1)
    max_rank: int | None = key(None, "last rank that is taken; null: none", ge=1)
    min_score: float | None = key(None, "lowest similarity that is taken")
    max_score: float | None = key(None, "highest similarity that is taken, as the threshold of UniME-V2")
    positives: str | None = key(
        None,
        "Parquet of query_id and candidate_id, or of id and positive_id: never neighbours, and what margins refer to",
        names_input=True,
        path="existing",
    )
    relative_margin: float | None = key(
        None, "at most the positive's similarity less this share of it; NV-Retriever takes 0.05", ge=0, le=1
    )
    absolute_margin: float | None = key(None, "at most the positive's similarity less this", ge=0)
    pool_column: str | None = key(None, "column of both sets that names pools, such as data sets or modality")
    pool: Literal["any", "same", "other"] = key("any", "pool of a neighbour, beside that of its query")
    own_picture: Literal["exclude", "allow", "force"] = key(
        "exclude",
        "the candidate that is the query's own picture without its text; force: a row of its own, source own_picture",
    )
    search: Literal["exact", "faiss"] = key(
        "exact",
        "compare every query with every candidate; or with those that FAISS shortlists, whose recall is measured and "
        "printed",
        added_later=True,
    )
    faiss: FaissSettings = key(FaissSettings(), "the approximate search")
    use_gpu: bool | None = key(None, "one accelerator per task; null: if the cluster has any", rows=False)
    queries_per_file: int = key(20_000, "queries of one output file, which one task searches for", ge=1)

    @field_validator("queries", "candidates", mode="before")
    @classmethod
    def _one_is_a_list(cls, entries: Any) -> Any:
        return as_list(entries)

    @field_validator("queries", "candidates")
    @classmethod
    def _not_empty(cls, entries: list[str]) -> list[str]:
        if not entries or not all(entries):
            raise ValueError("no vectors given")
        return entries


class ExportConfig(JobConfig):
    samples: list[str] = required(
        "the samples whose ids the neighbours name, as mine's queries and candidates", names_input=True
    )
    neighbours: str = required(
        "as mine writes them: candidate_id is the id of a sample, whose positive becomes a negative",
        names_input=True,
        path="existing",
    )
    layout: Literal["samples", "mme5", "tuples"] = key(
        "samples",
        "samples: as train reads them; mme5: the files of mmE5's hard negatives, lists as text, pictures beside them; "
        "tuples: sentence-transformers' anchor, positive, negative_1, ...",
    )
    num_negatives: int = key(5, "negatives of a sample at most, nearest first; of tuples exactly so many", ge=1)
    images: str | None = key(None, "folder that paths of the samples' pictures start from", path="existing")

    @field_validator("samples", mode="before")
    @classmethod
    def _one_is_a_list(cls, entries: Any) -> Any:
        return as_list(entries)
