"""The search of `mine` against the bare matrix products: python -m benchmarks.mining [--device cuda]

Prints the ratio of the best times, both sides in turn, and the rate of the search's products; checks that scores and
order are those of brute force in float64, up to rounding. With --memory also the peak memory of a whole task at 20,000
and at 200,000 candidates, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mme5core.mining.candidate_index import CandidateIndex
from mme5core.mining.nearest import Nearest
from mme5core.mining.neighbour_parts import CHUNK_ROWS, MineBlock
from mme5core.mining.query_block import SCORES_ON_CPU, SCORES_ON_GPU
from mme5core.mining.rules import Rule
from mme5core.mining.vector_files import VectorFiles

NUM_QUERIES, NUM_CANDIDATES, WIDTH, TOP_K = 20_000, 20_000, 256, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=int, default=1, help="times as many queries and candidates")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(search(torch.device(arguments.device), arguments.scale)), flush=True)
    if arguments.memory:
        print(json.dumps({"peak_bytes": {count: peak_bytes(count) for count in (20_000, 200_000)}}), flush=True)


def search(device: torch.device, scale: int = 1) -> dict[str, object]:
    """The search without reading, against its products alone, in tiles of the same shapes."""
    from benchmarks.run import best_of  # not where memory is measured: it imports much

    torch.set_num_threads(2)
    torch.backends.cuda.matmul.allow_tf32 = False
    queries, candidates = (unit_vectors(count * scale, seed) for seed, count in ((0, NUM_QUERIES), (1, NUM_CANDIDATES)))
    query_BD, candidate_CD = (torch.as_tensor(vectors).to(device) for vectors in (queries, candidates))
    rows = max(1, (SCORES_ON_CPU if device.type == "cpu" else SCORES_ON_GPU) // CHUNK_ROWS)
    place_C = torch.arange(len(candidates), device=device)
    last: list[Nearest] = []

    def products() -> None:
        for start in range(0, len(candidate_CD), CHUNK_ROWS):
            for first in range(0, len(query_BD), rows):
                query_BD[first : first + rows] @ candidate_CD[start : start + CHUNK_ROWS].T
        _wait(device)

    def nearest() -> None:
        last[:] = [Nearest(len(queries), TOP_K, device=device)]
        for start in range(0, len(candidate_CD), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            for first in range(0, len(query_BD), rows):
                last[0].add(query_BD[first : first + rows] @ candidate_CD[chunk].T, place_C[chunk], first=first)
        _wait(device)

    best = best_of({"products": products, "search": nearest}, rounds=5)
    scores, places = last[0].ranked()
    difference, same_order = _against_brute_force(queries, candidates, scores, places)
    operations = 2.0 * len(queries) * len(candidates) * WIDTH
    return {
        "queries": len(queries),
        "candidates": len(candidates),
        "width": WIDTH,
        "top_k": TOP_K,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, 2 threads",
        "torch": torch.__version__,
        "products_over_search": round(best["products"] / best["search"], 3),
        "products_gflops": round(operations / best["products"] / 1e9, 1),
        "search_gflops": round(operations / best["search"] / 1e9, 1),
        "largest_difference": difference,
        "places_of_float64": same_order,
    }


def peak_bytes(num_candidates: int) -> int:
    """Of one task that searches for 2,000 queries."""
    with tempfile.TemporaryDirectory() as folder:
        queries, candidates = Path(folder) / "q.parquet", Path(folder) / "c.parquet"
        write(queries, "q", 2_000)
        write(candidates, "c", num_candidates)
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(_run_task, (str(queries), str(candidates), folder))


def _run_task(queries: str, candidates: str, folder: str) -> int:
    sets = VectorFiles.open([queries], "queries"), VectorFiles.open([candidates], "candidates")
    index = CandidateIndex.write(sets[1], Path(folder) / "index")
    task = MineBlock(*sets, index, (Rule(top_k=TOP_K),), "exclude", None, (), Path(folder))
    list(task({"part": 0, "start": 0, "stop": len(sets[0])}))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write(file: Path, prefix: str, count: int) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(unit_vectors(count, 0).ravel()), WIDTH)
    ids = [f"{prefix}{number}" for number in range(count)]
    pq.write_table(pa.table({"id": ids, "embedding": vectors}), file, row_group_size=8192)


def unit_vectors(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _against_brute_force(
    queries: np.ndarray, candidates: np.ndarray, scores: np.ndarray, places: np.ndarray, num_queries: int = 1000
) -> tuple[float, float]:
    """Largest difference of a score, and the share of places that are the same; of the first queries."""
    exact = queries[:num_queries].astype(np.float64) @ candidates.astype(np.float64).T
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :TOP_K]
    of_expected = np.take_along_axis(exact, expected, 1)
    difference = float(np.abs(of_expected - scores[:num_queries]).max())
    assert difference < 1e-5, difference
    return difference, float((expected == places[:num_queries]).mean())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
