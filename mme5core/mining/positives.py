"""The positives of some queries: which candidates they are, what they hold, and how similar they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.errors import InputError
from mme5core.mining.candidate_index import modality_codes
from mme5core.mining.pairs import KeyJoin
from mme5core.mining.vector_files import VectorFiles, matrix
from mme5core.storage import AnyPath, parquet_file
from mme5core.tables import errors_name_setting, shards_of

# (query, positive): as in neighbours and relevance judgements, or as in a benchmark's queries.
PAIRS_AT_ONCE = 256
_COLUMNS = (("query_id", "candidate_id"), ("id", "positive_id"))


@dataclass(frozen=True, slots=True)
class Positives:
    """Of a block of B queries.

    Args:
        ids, contents: which queries have a candidate of this id, or of this content key, as a positive.
        scores: float32 [B]: the highest similarity with a positive; NaN for a query without one among the candidates.
        modalities: uint8 [B]: the code of that positive's modality (`candidate_index.MODALITIES`).
    """

    ids: KeyJoin
    contents: KeyJoin
    scores: np.ndarray
    modalities: np.ndarray


def positive_files(path: str) -> list[AnyPath]:
    """The files of pairs of a query's id and that of its positive.

    Raises:
        InputError: there is none, or one lacks the columns.
    """
    try:
        files = shards_of([path], suffixes=(".parquet",))
    except InputError as error:
        raise InputError(str(error).replace("input", "positives", 1)) from None
    for file in files:
        with errors_name_setting("positives", file):
            _pair_columns(file)
    return files


def positives_of(
    query_ids: pa.Array, query_BD: np.ndarray, files: Sequence[AnyPath], candidates: VectorFiles, *, scores: bool
) -> Positives:
    """
    Args:
        scores: compute `scores` and `modalities`, for which the positives' vectors are read.
    """
    pair_ids, owners = _pairs(query_ids, files)
    ids = KeyJoin.of(pair_ids, owners)
    score_B = np.full(len(query_ids), np.nan, np.float32)
    modality_B = np.zeros(len(query_ids), np.uint8)
    more = [name for name in ("content_key", "modality") if candidates.has([name])]
    keys: list[pa.Array] = [pa.array([], pa.binary(16))]
    key_owners: list[np.ndarray] = [np.zeros(0, np.int64)]
    for start, table in candidates.tables(["id", *more]):
        queries, rows = ids.pairs(table["id"])
        if not len(queries):
            continue
        if "content_key" in more:
            keys.append(table["content_key"].take(pa.array(rows)).combine_chunks())
            key_owners.append(queries)
        if scores:
            codes = modality_codes(table["modality"]) if "modality" in more else np.zeros(len(table), np.uint8)
            for low in range(0, len(rows), PAIRS_AT_ONCE):
                some = slice(low, low + PAIRS_AT_ONCE)
                distinct, back = np.unique(rows[some], return_inverse=True)
                similar = _products(query_BD[queries[some]], _vectors(candidates, start + distinct)[back])
                for query, row, score in zip(
                    queries[some].tolist(), rows[some].tolist(), similar.tolist(), strict=True
                ):
                    if np.isfinite(score) and not score <= score_B[query]:
                        score_B[query], modality_B[query] = score, codes[row]
    return Positives(ids, KeyJoin.of(pa.concat_arrays(keys), np.concatenate(key_owners)), score_B, modality_B)


def _products(query_ND: np.ndarray, positive_ND: np.ndarray) -> np.ndarray:
    """float32 [N]: of each query with its positive, by the same product as the search, so that copies score alike."""
    import torch

    query, positive = (
        torch.nn.functional.pad(torch.as_tensor(part), (0, 0, 0, PAIRS_AT_ONCE - len(part)))
        for part in (query_ND, positive_ND)
    )
    products: np.ndarray = (query @ positive.T).diagonal()[: len(query_ND)].numpy()
    return products


def _vectors(candidates: VectorFiles, numbers: np.ndarray) -> np.ndarray:
    """float32 [N, D]: the vectors of some candidates that lie near each other."""
    vectors = np.empty((len(numbers), candidates.width), np.float32)
    low, high = int(numbers.min()), int(numbers.max()) + 1
    for start, table in candidates.tables(["embedding"], start=low, stop=high, rows=1 << 12):
        here = np.flatnonzero((numbers >= start) & (numbers < start + len(table)))
        if len(here):
            vectors[here] = matrix(table.take(pa.array(numbers[here] - start)), candidates.width)
    return vectors


def _pairs(query_ids: pa.Array, files: Sequence[AnyPath]) -> tuple[pa.Array, np.ndarray]:
    """Ids of positives, and the queries that they belong to."""
    ids: list[pa.Array] = [pa.array([], pa.string())]
    owners: list[np.ndarray] = [np.zeros(0, np.int64)]
    for file in files:
        with errors_name_setting("positives", file):
            query, positive = _pair_columns(file)
            for batch in parquet_file(file).iter_batches(1 << 16, columns=[query, positive]):
                at = pc.index_in(batch.column(query).cast(pa.string()), value_set=query_ids, skip_nulls=True)
                is_own = pc.is_valid(at)
                ids.append(batch.column(positive).cast(pa.string()).filter(is_own))
                owners.append(at.filter(is_own).to_numpy().astype(np.int64))
    return pa.concat_arrays(ids), np.concatenate(owners)


def _pair_columns(file: AnyPath) -> tuple[str, str]:
    names = parquet_file(file).schema_arrow.names
    for pair in _COLUMNS:
        if all(names.count(name) == 1 for name in pair):
            return pair
    known = " or ".join(" and ".join(pair) for pair in _COLUMNS)
    raise InputError(f"positives {str(file)!r} has no columns {known}; its columns are {', '.join(names)}")
