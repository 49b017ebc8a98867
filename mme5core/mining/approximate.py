"""Approximate search with FAISS: a shortlist of each query's candidates, which the exact search then ranks.

Shapes: B queries, S candidates of a shortlist, D width.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.corpus.out_of_core import new_array
from mme5core.errors import InputError, first_line
from mme5core.mining.candidate_index import CandidateIndex
from mme5core.mining.vector_files import VectorFiles, is_nobody, matrix

TRAINING_ROWS_PER_LIST, MOST_TRAINING_ROWS = 64, 1 << 20
KEY_BYTES = 16


def check_faiss(factory: str, width: int) -> None:
    """
    Raises:
        InputError: FAISS is not installed, or makes no such index.
    """
    if importlib.util.find_spec("faiss") is None:
        raise InputError("search=faiss needs the package faiss-cpu (or faiss-gpu): pip install faiss-cpu")
    import faiss

    try:
        faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise InputError(
            f"faiss.index={factory!r}: FAISS makes no such index of width {width} ({first_line(error)})"
        ) from None


def default_factory(num_candidates: int) -> str:
    """Inverted lists, four times the square root of the corpus, their vectors in half precision.

    >>> default_factory(1_000_000)
    'IVF4000,SQfp16'
    """
    return f"IVF{max(1, min(num_candidates, 4 * int(num_candidates**0.5)))},SQfp16"


@dataclass(frozen=True, slots=True)
class ApproximateIndex:
    """Files below a folder, which the tasks map; travels to them.

    Args:
        has_keys: whether content keys of the candidates are known.
        num_probed: inverted lists that a query looks into.
        shortlist: candidates of a query, for each that is to be ranked.
        num_unusable: candidates without a usable vector or an id.
    """

    folder: Path
    num_rows: int
    width: int
    has_keys: bool
    num_probed: int
    shortlist: int
    num_unusable: int = 0

    @classmethod
    def write(
        cls, candidates: VectorFiles, folder: Path, *, factory: str, num_probed: int, shortlist: int, seed: int
    ) -> ApproximateIndex:
        """Two passes over the candidates: one copies the vectors and draws some to train on, one fills the index.

        Raises:
            InputError: too few candidates for the index.
        """
        import faiss

        folder.mkdir()
        has_keys = candidates.has(["content_key"])
        num_unusable = 0
        vectors = np.memmap(folder / "vectors", np.float32, "w+", shape=(len(candidates), candidates.width))
        keys = new_array(folder / "keys", 2 * len(candidates)) if has_keys else None
        for start, table in candidates.tables(["id", "embedding", *(["content_key"] if has_keys else [])]):
            rows = slice(start, start + len(table))
            block = matrix(table, candidates.width).copy()
            block[is_nobody(table["id"])] = np.nan
            num_unusable += int((~np.isfinite(block).all(axis=1)).sum())
            vectors[rows] = block
            if keys is not None:
                filled = table["content_key"].combine_chunks().fill_null(bytes(KEY_BYTES)).to_pylist()
                keys[2 * rows.start : 2 * rows.stop] = np.frombuffer(b"".join(filled), np.int64)
        vectors.flush()
        index = faiss.index_factory(candidates.width, factory, faiss.METRIC_INNER_PRODUCT)
        num_lists = getattr(faiss.try_extract_index_ivf(index), "nlist", 1)
        count = min(len(candidates), max(1000, TRAINING_ROWS_PER_LIST * num_lists), MOST_TRAINING_ROWS)
        chosen = np.sort(np.random.default_rng(seed).choice(len(candidates), count, replace=False))
        drawn = np.nan_to_num(np.asarray(vectors[chosen]), copy=False)
        try:
            index.train(drawn)
            for start in range(0, len(candidates), 1 << 16):
                index.add(np.nan_to_num(np.asarray(vectors[start : start + (1 << 16)])))
        except RuntimeError as error:
            raise InputError(f"faiss.index={factory!r} cannot hold the candidates ({first_line(error)})") from None
        faiss.write_index(index, str(folder / "index.faiss"))
        return cls(folder, len(candidates), candidates.width, has_keys, num_probed, shortlist, num_unusable)

    def opened(self, num_threads: int | None) -> Any:
        """The index, its lists mapped from the disk where FAISS can.

        Args:
            num_threads: of searches; None: FAISS's choice.
        """
        import faiss

        if num_threads is not None:
            faiss.omp_set_num_threads(num_threads)
        index = faiss.read_index(str(self.folder / "index.faiss"), faiss.IO_FLAG_MMAP)
        inverted = faiss.try_extract_index_ivf(index)
        if inverted is not None:
            inverted.nprobe = min(self.num_probed, inverted.nlist)
        return index

    def shortlisted(self, index: Any, query_BD: np.ndarray, num_ranked: int) -> np.ndarray:
        """int64: rows of the candidates that are near any of the queries, rising."""
        count = min(self.num_rows, self.shortlist * num_ranked)
        rows_BS = index.search(np.ascontiguousarray(query_BD), count)[1]
        rows: np.ndarray = np.unique(rows_BS[rows_BS >= 0])
        return rows

    def table(self, rows: np.ndarray, candidates: CandidateIndex) -> pa.Table:
        """ "id", "embedding" and, where it is known, "content_key" of some candidates."""
        vectors = np.memmap(self.folder / "vectors", np.float32, "r", shape=(self.num_rows, self.width))[rows]
        columns: dict[str, Any] = {
            "id": candidates.order.ids(candidates.order.places_of(rows)),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(vectors).ravel()), self.width),
        }
        if self.has_keys:
            keys = np.memmap(self.folder / "keys", np.int64, "r").reshape(-1, 2)[rows]
            keys = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(KEY_BYTES), len(rows), [None, pa.py_buffer(np.ascontiguousarray(keys).tobytes())]
            )
            is_null = pc.equal(keys, pa.scalar(bytes(KEY_BYTES), pa.binary(KEY_BYTES)))
            columns["content_key"] = pc.if_else(is_null, pa.scalar(None, pa.binary(KEY_BYTES)), keys)
        return pa.table(columns)
