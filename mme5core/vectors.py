"""The stored form of unit vectors: cut to a width, rounded or quantised, in the same way for every row of a corpus.

Shapes: N rows, D columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

DTYPES = {"float32": pa.float32(), "float16": pa.float16()}
ALSO = ("int8", "binary")


def matrix_of(column: pa.Array) -> np.ndarray:
    """float32 [N, D] of a column of N lists of D numbers each, without nulls."""
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    matrix: np.ndarray = numbers.astype(np.float32, copy=False).reshape(len(column), -1)
    return matrix


def cut(vector_ND: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` columns, unit length again: a Matryoshka model's vectors at a smaller width (arXiv 2205.13147).

    >>> cut(np.array([[0.6, 0.0, 0.8]]), 2)
    array([[1., 0.]])

    Raises:
        ValueError: `dim` is not in 1 ... D.
    """
    if not 1 <= dim <= vector_ND.shape[1]:
        raise ValueError(f"dim={dim} does not fit vectors of width {vector_ND.shape[1]}")
    if dim == vector_ND.shape[1]:
        return vector_ND
    first = vector_ND[:, :dim]
    # A row whose first columns are all 0 has no direction: it stays 0, where a division by 0 would give NaN.
    return first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), np.finfo(vector_ND.dtype).tiny)


@dataclass(frozen=True, slots=True)
class Int8Calibration:
    """For each column [D], the number that code -128 stands for and the step between codes: low + (code + 128) x step.

    The convention of sentence-transformers' `quantize_embeddings`, so that its tools read the codes.
    """

    low: np.ndarray
    step: np.ndarray

    def digest(self) -> str:
        """Equal where all codes are."""
        return hashlib.sha256(self.low.tobytes() + self.step.tobytes()).hexdigest()

    @classmethod
    def fit(cls, batches: Iterable[np.ndarray]) -> Int8Calibration:
        """Calibrated on the minimum and the maximum of each column over all batches [N, D].

        Raises:
            ValueError: the batches have no rows.
        """
        low = high = None
        for batch in batches:
            if len(batch):
                low = batch.min(axis=0) if low is None else np.minimum(low, batch.min(axis=0))
                high = batch.max(axis=0) if high is None else np.maximum(high, batch.max(axis=0))
        if low is None or high is None:
            raise ValueError("no vectors to calibrate on")
        return cls(low.astype(np.float32), ((high - low) / 255).astype(np.float32))

    def encode(self, vector_ND: np.ndarray) -> np.ndarray:
        """int8 codes [N, D]; numbers outside the calibrated range are clipped."""
        step = np.where(self.step > 0, self.step, 1)
        return (np.clip(np.rint((vector_ND - self.low) / step), 0, 255) - 128).astype(np.int8)

    def decode(self, code_ND: np.ndarray) -> np.ndarray:
        """float32 [N, D], within half a step of the encoded numbers."""
        return (self.low + (code_ND.astype(np.float32) + 128) * self.step).astype(np.float32)


def pack_bits(vector_ND: np.ndarray) -> np.ndarray:
    """uint8 [N, ceil(D / 8)]: one bit for each column, 1 if it is above 0; the first column is the highest bit.

    >>> pack_bits(np.array([[0.5, -0.5, 0.1, 0.0, 0.0, 0.0, 0.0, -1.0]]))
    array([[160]], dtype=uint8)
    """
    return np.packbits(vector_ND > 0, axis=1)


@dataclass(frozen=True, slots=True)
class VectorFormat:
    """The columns of a vectors file beside `id`.

    Args:
        width: columns of the model's vectors.
        dim: how many of them are kept.
        dtype: of `embedding`: "float32" or "float16".
        also: additional columns: "int8" (`embedding_int8`), "binary" (`embedding_binary`, packed bits).

    Raises:
        ValueError: a width, dtype or column that does not exist.
    """

    width: int
    dim: int
    dtype: str = "float32"
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= self.width:
            raise ValueError(f"vectors.dim={self.dim} does not fit vectors of width {self.width}")
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown vectors.dtype {self.dtype!r}; known: {sorted(DTYPES)}")
        if unknown := set(self.also) - set(ALSO):
            raise ValueError(f"unknown vectors.also {sorted(unknown)[0]!r}; known: {', '.join(ALSO)}")

    def fields(self) -> list[pa.Field]:
        columns = [pa.field("embedding", pa.list_(DTYPES[self.dtype], self.dim))]
        if "int8" in self.also:
            columns.append(pa.field("embedding_int8", pa.list_(pa.int8(), self.dim)))
        if "binary" in self.also:
            columns.append(pa.field("embedding_binary", pa.list_(pa.uint8(), -(-self.dim // 8))))
        return columns

    def arrays(self, vector_ND: np.ndarray, calibration: Int8Calibration | None) -> dict[str, pa.Array]:
        """The columns for float32 unit vectors that `cut` reduced to `dim`.

        Args:
            calibration: needed for "int8", except without rows.
        """
        columns = {"embedding": vector_ND.astype(np.dtype(self.dtype))}
        if "int8" in self.also:
            assert calibration is not None or not len(vector_ND)
            columns["embedding_int8"] = calibration.encode(vector_ND) if calibration else vector_ND.astype(np.int8)
        if "binary" in self.also:
            columns["embedding_binary"] = pack_bits(vector_ND)
        return {
            name: pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), column.shape[1])
            for name, column in columns.items()
        }
