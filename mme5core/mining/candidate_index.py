"""What is known of all candidates before the search, on disk: the order of their ids, repeated contents, modalities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.corpus.out_of_core import first_of_equal, keys_of
from mme5core.errors import InputError
from mme5core.mining.id_order import IdOrder, IdTwice
from mme5core.mining.vector_files import VectorFiles

MODALITIES = ("", "T", "I", "IT")
"""By code; the first stands for one that is not known."""


@dataclass(frozen=True, slots=True)
class CandidateIndex:
    """Files below `folder`, which the tasks map; travels to them.

    Args:
        num_repeated: candidates whose content an earlier one has; they are never neighbours.
    """

    folder: Path
    order: IdOrder
    num_repeated: int

    @classmethod
    def write(cls, candidates: VectorFiles, folder: Path) -> CandidateIndex:
        """
        Raises:
            InputError: two candidates have one id.
        """
        folder.mkdir()
        ids = (table["id"] for _, table in candidates.tables(["id"]))
        try:
            order = IdOrder.write(ids, len(candidates), folder / "ids")
        except IdTwice as error:
            raise InputError(f"{candidates.setting}: two have the id {str(error)[:100]!r}") from None
        is_repeated = _repeated(candidates, folder)
        is_repeated.tofile(folder / "repeated")
        modality_of_place = np.zeros(len(candidates), np.uint8)
        if candidates.has(["modality"]):
            for start, table in candidates.tables(["modality"]):
                modality_of_place[order.places(start, start + len(table))] = modality_codes(table["modality"])
        modality_of_place.tofile(folder / "modalities")
        return cls(folder, order, int(is_repeated.sum()))

    def check_modalities(self, rule: str) -> None:
        """
        Raises:
            InputError: a rule looks at modalities, and a candidate has none that we know.
        """
        unknown = np.flatnonzero(np.memmap(self.folder / "modalities", np.uint8, "r") == 0)
        if len(unknown):
            (name,) = self.order.ids(unknown[:1]).to_pylist()
            raise InputError(
                f"candidates: {len(unknown):,} have a modality other than T, I or IT, which rule {rule!r} looks at "
                f"(the first: {name[:100]!r})"
            )

    def is_repeated(self, start: int, stop: int) -> np.ndarray:
        """bool: which of some candidates have the content of an earlier one."""
        return np.asarray(np.memmap(self.folder / "repeated", np.bool_, "r")[start:stop])

    def are_repeated(self, rows: np.ndarray) -> np.ndarray:
        """bool: which of some candidates, by their rows, have the content of an earlier one."""
        return np.asarray(np.memmap(self.folder / "repeated", np.bool_, "r")[rows])

    def modalities(self, places: np.ndarray) -> np.ndarray:
        """uint8 codes of the candidates at some places of the order."""
        return np.asarray(np.memmap(self.folder / "modalities", np.uint8, "r")[places])


def modality_codes(column: pa.ChunkedArray) -> np.ndarray:
    """uint8: the place in MODALITIES of each entry."""
    at = pc.index_in(column, value_set=pa.array(MODALITIES))
    return np.asarray(pc.fill_null(at, 0)).astype(np.uint8)


def _repeated(candidates: VectorFiles, folder: Path) -> np.ndarray:
    is_repeated = np.zeros(len(candidates), np.bool_)
    if not candidates.has(["content_key"]):
        return is_repeated

    def keyed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start, table in candidates.tables(["content_key"]):
            column = table["content_key"].combine_chunks()
            yield start + np.flatnonzero(np.asarray(column.is_valid())), keys_of(column.drop_null())

    first = first_of_equal(keyed(), len(candidates), folder / "first")
    is_repeated[:] = (first >= 0) & (first != np.arange(len(first)))
    (folder / "first").unlink()
    return is_repeated
