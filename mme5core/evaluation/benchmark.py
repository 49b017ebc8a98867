"""A retrieval benchmark on disk: queries with one relevant candidate each, and the candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.errors import InputError, first_line
from mme5core.readers.shards import find_shards
from mme5core.schemas import CANDIDATES, NEIGHBOURS, QUERIES
from mme5core.storage import parquet_file
from mme5core.tables import column_tables
from mme5core.types import Content, EvalQuery
from mme5core.vectors import matrix_of


@dataclass(frozen=True)
class Benchmark:
    """Queries and candidates, in the order of their files; `contents` are the candidates' texts and pictures."""

    name: str
    queries: list[EvalQuery]
    candidate_ids: list[str]
    contents: list[Content]


def read_benchmark(folder: Path) -> Benchmark:
    """The benchmark in a folder of `queries.parquet` and `candidates.parquet`.

    Raises:
        InputError: a file or column is missing, a row is not valid, or an id is not unique.
    """
    queries = _read(folder / "queries.parquet", QUERIES.names)
    candidates = _read(folder / "candidates.parquet", CANDIDATES.names)
    try:
        contents = [Content(row["text"] or None, (row["image"] or {}).get("bytes")) for row in candidates.to_pylist()]
    except ValueError as error:
        raise InputError(f"benchmark {str(folder)!r}: a candidate: {error}") from None
    try:
        eval_queries = [_query(row) for row in queries.to_pylist()]
    except ValueError as error:
        raise InputError(f"benchmark {str(folder)!r}: a query: {error}") from None
    query_ids, candidate_ids = [query.id for query in eval_queries], candidates["id"].to_pylist()
    for what, ids in (("query", query_ids), ("candidate", candidate_ids)):
        if len(set(ids)) != len(ids):
            raise InputError(f"benchmark {str(folder)!r}: a {what} id occurs twice")
        if not ids:
            raise InputError(f"benchmark {str(folder)!r}: no {what}")
    both = set(candidate_ids).intersection(query_ids)
    if both:
        # Vectors are looked up by id, which must name only one of them.
        raise InputError(f"benchmark {str(folder)!r}: {min(both)!r} is the id of a query and of a candidate")
    return Benchmark(folder.name, eval_queries, candidate_ids, contents)


def read_vectors(inputs: Sequence[str], wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The vectors of the wanted ids, float32 [D] each; ids without a vector are left out.

    Raises:
        InputError: there are no such files, they hold no vectors, an id twice, or vectors of different models.
    """
    keep = set(wanted)
    vectors: dict[str, np.ndarray] = {}
    models: dict[str, str] = {}
    for file in find_shards(inputs, suffixes=(".parquet",)):
        try:
            parquet = parquet_file(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file}: cannot be read ({first_line(error)})") from None
        schema = parquet.schema_arrow
        if not {"id", "embedding"} <= set(schema.names):
            raise InputError(f"{file}: no vectors; its columns are {', '.join(schema.names)}")
        identity = (schema.metadata or {}).get(b"mme5.model_identity", b"").decode()
        if identity:
            models[identity] = str(file)
        if len(models) > 1:
            raise InputError(f"vectors of different models: {' and '.join(models.values())}")
        for batch in parquet.iter_batches(columns=["id", "embedding"]):
            batch = batch.filter(batch.column("embedding").is_valid())
            if not batch.num_rows:
                continue
            matrix = matrix_of(batch.column("embedding"))
            for row, vector_id in enumerate(batch.column("id").to_pylist()):
                if vector_id in vectors:
                    raise InputError(f"{file}: a second vector of id {vector_id!r}")
                if vector_id in keep:
                    vectors[vector_id] = matrix[row]
    return vectors


def holds_rankings(inputs: Sequence[str]) -> bool:
    """Whether the files hold ranked candidates, as `rerank` and `mine` write them, and no vectors."""
    files = find_shards(inputs, suffixes=(".parquet",))
    return bool(files) and {"query_id", "candidate_id", "rank"} <= set(parquet_file(files[0]).schema_arrow.names)


def read_rankings(inputs: Sequence[str], benchmark: Benchmark) -> dict[str, list[str]]:
    """The candidates of each of the benchmark's queries, best first; those of other queries are left out.

    Raises:
        InputError: there are no such files, or a query has a rank or a candidate twice.
    """
    own = {query.id for query in benchmark.queries}
    ranked: dict[str, dict[int, str]] = {}
    for file in find_shards(inputs, suffixes=(".parquet",)):
        for table in column_tables(file, NEIGHBOURS, "input"):
            columns = (table[name].to_pylist() for name in ("query_id", "candidate_id", "rank"))
            for query_id, candidate_id, rank in zip(*columns, strict=True):
                if query_id not in own:
                    continue
                of_query = ranked.setdefault(query_id, {})
                if rank is None or of_query.setdefault(rank, candidate_id) != candidate_id:
                    raise InputError(f"{file}: query {query_id!r} has rank {rank} twice: give one source alone")
    lists = {query_id: [of_query[rank] for rank in sorted(of_query)] for query_id, of_query in ranked.items()}
    for query_id, candidates in lists.items():
        if len(set(candidates)) < len(candidates):
            raise InputError(f"query {query_id!r} has a candidate twice")
    return lists


def _query(row: dict[str, Any]) -> EvalQuery:
    """A row of `schemas.QUERIES`. Without a positive, its relevant candidate is "", which has no vector."""
    content = Content(row["text"]) if row["text"] else None
    relevance = {row["positive_id"] or "": 1.0}
    return EvalQuery(row["id"], content, row["instruction"], relevance, language=row["language"])


def _read(file: Path, columns: Sequence[str]) -> pa.Table:
    if not file.is_file():
        raise InputError(f"no benchmark at {str(file.parent)!r}: it has no {file.name}")
    try:
        names = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: cannot be read ({first_line(error)})") from None
    for column in columns:
        if column not in names:
            raise InputError(f"{file}: no column {column!r}; it has {', '.join(names)}")
    return pq.read_table(file, columns=list(columns))
