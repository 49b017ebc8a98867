"""Sets of vectors for the tests of mining, whose products are exact in float32, so that ties are ties."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.mining.candidate_index import CandidateIndex
from mme5core.mining.neighbour_parts import MineBlock
from mme5core.mining.rules import Rule
from mme5core.mining.vector_files import VectorFiles

WIDTH = 8


def exact_vectors(count: int, seed: int) -> np.ndarray:
    """float32 [count, WIDTH] of eighths, many of them equal."""
    return (np.random.default_rng(seed).integers(-1, 2, (count, WIDTH)) / 8).astype(np.float32)


def write(
    folder: Path, ids: Sequence[str], vectors: Any, *, num_files: int = 3, model: str = "", **columns: Any
) -> str:
    """A folder of vectors in several files, small row groups and further columns."""
    folder.mkdir(parents=True)
    bounds = np.linspace(0, len(ids), num_files + 1).astype(int).tolist()
    for number, (low, high) in enumerate(itertools.pairwise(bounds)):
        own = {"id": list(ids[low:high]), "embedding": list(vectors[low:high])}
        own |= {name: column[low:high] for name, column in columns.items()}
        table = pa.table(own)
        if model:
            table = table.replace_schema_metadata({"mme5.model_identity": model})
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=7)
    return str(folder)


def mined(
    folder: Path, queries: str, candidates: str, *rules: Rule, positives: Sequence[Path] = (), **options: Any
) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, int]]:
    """Rows of the neighbours, the reason of each query that has none, and the task's counts."""
    sets = VectorFiles.open([queries], "queries"), VectorFiles.open([candidates], "candidates")
    folder.mkdir()
    index = CandidateIndex.write(sets[1], folder / "index")
    task = MineBlock(
        *sets,
        index,
        rules or (Rule(top_k=5),),
        options.get("own_picture", "exclude"),
        options.get("pool"),
        tuple(positives),
        folder,
    )
    (report,) = task({"part": 0, "start": 0, "stop": len(sets[0])})
    rows = pq.read_table(folder / report["file"]["name"]).to_pylist()
    refused = pq.read_table(folder / report["refusals"]["name"]).to_pylist()
    counts = {name: report[name] for name in ("kept", "rows", "unusable")}
    return rows, {row["id"]: row["reason"] for row in refused}, counts
