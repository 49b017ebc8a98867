"""A block of queries in memory.

Shapes: B queries, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mme5core.mining.vector_files import is_nobody
from mme5core.types import Rejected

TILE = 64
"""Rows and columns of products come in multiples of it, see `query_block.whole_tiles`."""


@dataclass(frozen=True, slots=True)
class Queries:
    """The queries of a block that have a vector.

    Args:
        vectors: float32 [B, D].
        content_keys, picture_keys, pools: None where the files do not have them.
    """

    ids: pa.Array
    vectors: np.ndarray
    content_keys: pa.Array | None = None
    picture_keys: pa.Array | None = None
    pools: pa.Array | None = None


def usable(queries: Queries) -> tuple[Queries, list[Rejected]]:
    """The queries whose vectors are numbers, and the others with a reason."""
    is_null = is_nobody(queries.ids)
    is_usable = np.isfinite(queries.vectors).all(axis=1) & ~is_null
    refused = [
        Rejected("", "no_id", "its id is null")
        if null
        else Rejected(row_id, "no_vector", "its embedding is missing, of another width, or holds what is no number")
        for row_id, null in zip(
            queries.ids.filter(pa.array(~is_usable)).to_pylist(), is_null[~is_usable].tolist(), strict=True
        )
    ]
    if is_usable.all():
        return queries, refused
    kept = pa.array(is_usable)
    columns = [None if column is None else column.filter(kept) for column in _columns(queries)]
    return Queries(queries.ids.filter(kept), queries.vectors[is_usable], *columns), refused


def _columns(queries: Queries) -> tuple[pa.Array | None, pa.Array | None, pa.Array | None]:
    return queries.content_keys, queries.picture_keys, queries.pools
