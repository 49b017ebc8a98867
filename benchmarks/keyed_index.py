"""An index of a corpus with equal contents and ids, pairs of its ids, and what must come of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.corpus.index import INDEX, ROWS_PER_GROUP, id_key
from mme5core.schemas import NEIGHBOURS

NUM_SHARDS, NUM_FILES, PAIRS_PER_ROW = 100, 20, 2
SAME_CONTENT, SAME_ID, REFUSED, OUTSIDE = 0.30, 0.005, 0.01, 0.05
"""Shares of the rows with an earlier row's content, with its id, refused; of candidates that the corpus lacks."""


def earlier_or_new(num_rows: int, share: float, seed: int) -> np.ndarray:
    """int64 [N]: a number for each row; new ones count up from 0, and `share` of the rows have an earlier one."""
    draw = np.random.default_rng(seed)
    is_new = draw.random(num_rows) >= share
    is_new[0] = True
    numbers = np.cumsum(is_new) - 1
    again = ~is_new
    numbers[again] = (draw.random(int(again.sum())) * (numbers[again] + 1)).astype(np.int64)
    return numbers


def random_keys(numbers: np.ndarray) -> np.ndarray:
    """uint64 [N, 2]: splitmix64 of each number, twice."""
    keys = np.empty((len(numbers), 2), np.uint64)
    for half in range(2):
        mixed = (2 * numbers + half).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys[:, half] = mixed ^ (mixed >> np.uint64(31))
    return keys


def prepare(work: Path, num_rows: int) -> None:
    """The index, the pairs by id and by key, and the expected results."""
    contents, ids = earlier_or_new(num_rows, SAME_CONTENT, 0), earlier_or_new(num_rows, SAME_ID, 1)
    is_refused = np.random.default_rng(2).random(num_rows) < REFUSED
    names = np.array([name_of(number) for number in range(int(ids[-1] * 1.1) + 2)])
    keys = np.frombuffer(b"".join(id_key(name) for name in names.tolist()), "<u8").reshape(-1, 2)
    _write_index(work / "index", contents, ids, is_refused, names, keys)
    is_usable = _write_expected(work, contents, ids, is_refused)
    _write_pairs(work, ids, is_usable, names, keys)


def name_of(number: int) -> str:
    """An id of 16 characters in no order."""
    return f"{(number * 7919) % 10**9:09d}-{number:06x}"


def starts_of(num_rows: int) -> np.ndarray:
    return np.linspace(0, num_rows, NUM_SHARDS + 1).astype(np.int64)


def _write_index(
    folder: Path, contents: np.ndarray, ids: np.ndarray, is_refused: np.ndarray, names: np.ndarray, keys: np.ndarray
) -> None:
    """As the scan writes it."""
    folder.mkdir(parents=True)
    starts = starts_of(len(contents))
    for shard, (start, stop) in enumerate(pairwise(starts.tolist())):
        of_ids, refused = ids[start:stop], is_refused[start:stop]
        columns = {
            "id": pa.array(names[of_ids]),
            "id_key": binary16(keys[of_ids], refused),
            "key": binary16(random_keys(contents[start:stop]), refused),
            "offset": pa.array(20_000 * np.arange(stop - start)),
            "num_bytes": pa.array(np.full(stop - start, 20_000)),
            "reason": pa.array(np.where(refused, "unreadable_image", ""), mask=~refused),
        }
        nulls = {name: pa.nulls(stop - start, pa.string()) for name in ("detail", "source")}
        table = pa.table({field.name: (columns | nulls)[field.name] for field in INDEX}, schema=INDEX)
        pq.write_table(table, folder / f"{shard:06d}.parquet", compression="zstd", row_group_size=ROWS_PER_GROUP)


def binary16(keys: np.ndarray, is_null: np.ndarray) -> pa.Array:
    data = pa.py_buffer(np.ascontiguousarray(keys).tobytes())
    whole = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, data])
    return pc.if_else(pa.array(is_null), pa.scalar(None, pa.binary(16)), whole)


def _write_expected(work: Path, contents: np.ndarray, ids: np.ndarray, is_refused: np.ndarray) -> np.ndarray:
    """By sorting in memory, from the numbers that the keys were made of; returns which rows can be used."""
    valid = np.flatnonzero(~is_refused)
    is_again = np.ones(len(valid), dtype=bool)
    is_again[np.unique(ids[valid], return_index=True)[1]] = False
    np.save(work / "expected-duplicates.npy", valid[is_again])
    usable = valid[~is_again]
    _, first, inverse = np.unique(contents[usable], return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    of_rows = np.full(len(contents), -1)
    of_rows[usable] = number[inverse]
    np.save(work / "expected-contents.npy", of_rows)
    np.save(work / "expected-starts.npy", np.searchsorted(usable[first[order]], starts_of(len(contents))))
    is_usable = np.zeros(len(contents), dtype=bool)
    is_usable[usable] = True
    return is_usable


def _write_pairs(work: Path, ids: np.ndarray, is_usable: np.ndarray, names: np.ndarray, keys: np.ndarray) -> None:
    """Ten candidates to a query, every fifth row asks; and the count and the sum that a join must have."""
    for folder in ("pairs_id", "pairs_key"):
        (work / folder).mkdir()
    row_of = np.full(len(names), -1)
    row_of[ids[is_usable]] = np.flatnonzero(is_usable)
    num_pairs = PAIRS_PER_ROW * len(ids)
    count, total = 0, 0
    draw = np.random.default_rng(3)
    for number, (start, stop) in enumerate(_ranges(num_pairs, NUM_FILES)):
        queries = ids[np.arange(start, stop) // 10 * 10 // PAIRS_PER_ROW]
        candidates = draw.integers(0, int(ids[-1] * (1 + OUTSIDE)), stop - start)
        rank = (np.arange(start, stop) % 10 + 1).astype(np.int32)
        more = {
            "rank": rank,
            "score": draw.random(stop - start, np.float32),
            "source": pa.array(["clip"] * (stop - start)),
        }
        by_id = pa.table({"query_id": names[queries], "candidate_id": names[candidates], **more}, schema=NEIGHBOURS)
        pq.write_table(by_id, work / "pairs_id" / f"{number:06d}.parquet", row_group_size=1 << 17)
        none = np.zeros(stop - start, dtype=bool)
        by_key = {"query_key": binary16(keys[queries], none), "candidate_key": binary16(keys[candidates], none)}
        pq.write_table(pa.table(by_key | more), work / "pairs_key" / f"{number:06d}.parquet", row_group_size=1 << 17)
        query, row = row_of[queries], row_of[candidates]
        is_pair = (query >= 0) & (row >= 0) & (query != row)
        count, total = count + int(is_pair.sum()), total + sum_of(query[is_pair], row[is_pair], rank[is_pair])
    (work / "expected-pairs.json").write_text(json.dumps([count, total % 2**64]))


def _ranges(count: int, parts: int) -> Iterator[tuple[int, int]]:
    ends = np.linspace(0, count, parts + 1).astype(np.int64).tolist()
    return pairwise(ends)


def sum_of(query: np.ndarray, row: np.ndarray, rank: np.ndarray) -> int:
    """A sum that another pairing of the same rows does not have."""
    mixed = random_keys(query * 1_000_003 + row * 11 + rank)[:, 0]
    return int(mixed.sum(dtype=np.uint64))
