"""The keys of `embed-corpus`."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from mme5core.embedding_settings import EmbeddingSettings
from mme5core.settings import Section, key
from mme5core.web import ALLOW_HOSTS
from rayjobs.command.config import InputJobConfig


class VectorsConfig(Section):
    dim: int | None = key(None, "keep the first columns only, at unit length again (Matryoshka); null: all", ge=1)
    dtype: Literal["float32", "float16"] = key("float32", "of the column embedding")
    also: list[Literal["int8", "binary"]] = key(
        [], "columns beside it: embedding_int8, calibrated on the corpus; embedding_binary, eight columns a byte"
    )

    @field_validator("also")
    @classmethod
    def _in_one_order(cls, names: list[str]) -> list[str]:
        return sorted(set(names))


class EmbedCorpusConfig(EmbeddingSettings, InputJobConfig):
    side: Literal["both", "query", "target"] = key(
        "both", "of MMEB and XTD files, which hold queries and candidates: which to embed"
    )
    pictures: str | None = key(
        None,
        "folder or address that paths of pictures start from; null: their file's own folder",
        rows=False,
        path="existing",
    )
    allow_hosts: list[str] | None = key(None, ALLOW_HOSTS, rows=False)
    unreachable: Literal["pending", "refuse"] = key(
        "pending", "pictures whose server does not answer: leave them to the next run, or refuse them", rows=False
    )
    vectors: VectorsConfig = key(VectorsConfig(), "what is written of each vector")
    columns: list[str] = key([], "columns of the input to write beside the vectors")
    rows_per_file: int = key(100_000, "rows of one output file", ge=1)
