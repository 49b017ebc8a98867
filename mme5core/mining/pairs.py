"""Pairs of a query and a candidate that are known before any score: equal ids, equal contents, positives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Pairs = tuple[np.ndarray, np.ndarray]
"""int64 [N] each: queries of a block and rows of a chunk."""


@dataclass(frozen=True, slots=True)
class KeyJoin:
    """Which queries have a key; many queries may have the same, and a query several.

    Args:
        keys: distinct.
        starts: int64 [keys + 1]: where the queries of each key begin in `owners`.
    """

    keys: pa.Array
    starts: np.ndarray
    owners: np.ndarray

    @classmethod
    def of(cls, keys: pa.Array, owners: np.ndarray) -> KeyJoin:
        """
        Args:
            keys: of the queries in `owners`; nulls belong to nobody.
        """
        is_key = np.asarray(keys.is_valid())
        encoded = keys.filter(pa.array(is_key)).dictionary_encode()
        codes, owners = encoded.indices.to_numpy(), owners[is_key]
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes, minlength=len(encoded.dictionary))
        return cls(encoded.dictionary, np.concatenate([[0], np.cumsum(counts)]), owners[order])

    def pairs(self, chunk_keys: pa.ChunkedArray | pa.Array) -> Pairs:
        """Every query with every row of the chunk of the same key."""
        if not len(self.keys):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        at = pc.index_in(chunk_keys, value_set=self.keys, skip_nulls=True)
        codes = np.asarray(pc.fill_null(at, -1))
        rows = np.flatnonzero(codes >= 0)
        begun, sizes = self.starts[codes[rows]], np.diff(self.starts)[codes[rows]]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.owners[np.repeat(begun, sizes) + within], np.repeat(rows, sizes)


def joined(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of several joins, queries rising."""
    queries = np.concatenate([np.zeros(0, np.int64), *(queries for queries, _ in parts)])
    rows = np.concatenate([np.zeros(0, np.int64), *(rows for _, rows in parts)])
    order = np.argsort(queries, kind="stable")
    return queries[order], rows[order]
