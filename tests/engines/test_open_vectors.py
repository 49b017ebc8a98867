"""The code of docs/embed-corpus.md as it stands there, on vectors in the format of the job."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.vectors import Int8Calibration, VectorFormat

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "embed-corpus.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
NUM_ROWS, WIDTH = 120, 24


def unit(seed: int, count: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=["float32", "float16"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts, the quarantine and the manifest, as `embed-corpus` leaves them."""
    root = tmp_path_factory.mktemp("engines")
    vectors, ids = unit(0, NUM_ROWS), [f"row-{number:04d}" for number in range(NUM_ROWS)]
    wanted = VectorFormat(WIDTH, WIDTH, request.param, ("binary", "int8"))
    schema = pa.schema([("id", pa.string()), *wanted.fields()], {"mme5.model": "x"})
    calibration = Int8Calibration.fit([vectors])
    (root / "vectors" / "_quarantine").mkdir(parents=True)
    for part in range(3):
        here = slice(part * 40, part * 40 + 40)
        table = pa.table({"id": ids[here]} | wanted.arrays(vectors[here], calibration), schema=schema)
        pq.write_table(table, root / "vectors" / f"part-{part:05d}.parquet", compression="zstd")
    refused = pa.table({"id": ["bad"], "reason": ["not_an_image"], "detail": [""]})
    pq.write_table(refused, root / "vectors" / "_quarantine" / "part-00000.parquet")
    for name in ("_manifest.json", "_SUCCESS"):
        (root / "vectors" / name).write_text("{}")
    return root


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this test's own."""
    import pgserver

    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


def nearest(query: np.ndarray) -> list[str]:
    return [f"row-{place:04d}" for place in np.argsort(-(unit(0, NUM_ROWS) @ query))[:5]]


@pytest.mark.parametrize("block", BLOCKS, ids=[re.findall(r"import (\w+)", block)[0] for block in BLOCKS])
def test_an_engine_finds_the_nearest_rows(
    block: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "vectors").symlink_to(folder / "vectors")
    query = unit(1, 1)[0]
    np.save(tmp_path / "query.npy", query)
    before = 'import numpy\nquery = numpy.load("query.npy")\n'
    after = "import json\nprint(json.dumps(ids))\n"
    if "address" in block:
        before += f"address = {request.getfixturevalue('address')!r}\n"
        after += 'psycopg.connect(address, autocommit=True).execute("DROP TABLE corpus")\n'
    (tmp_path / "block.py").write_text(before + block + after)
    done = subprocess.run(
        [sys.executable, "block.py"],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == nearest(query)


def test_every_engine_of_the_page_has_its_block() -> None:
    page = "\n".join(BLOCKS)
    for engine in ("pandas", "polars", "duckdb", "datasets", "faiss", "lancedb", "qdrant_client", "pgvector"):
        assert f"import {engine}" in page or f"from {engine}" in page
