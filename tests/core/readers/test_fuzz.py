"""Mutated files of every format: no exception, no endless loop, no row that says neither what it is nor why not.

python -m pytest -m slow tests/core/readers/test_fuzz.py
"""

from __future__ import annotations

import io
import json
import resource
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.images import BadImage, load_rgb, picture_size
from mme5core.readers import ReadOptions, read_rows
from tests.core.test_images import encoded, noise, turned_by

NUM_PICTURES, NUM_FILES = 4_000, 400  # mutations of each format
SLOWEST_S = 20.0
PICTURES = {
    "jpeg": turned_by(6, "JPEG"),
    "progressive jpeg": encoded(noise(40, 20), "JPEG", progressive=True),
    "png": turned_by(6, "PNG"),
    "palette png": encoded(noise(40, 20).convert("P"), "PNG", transparency=0),
    "webp": encoded(noise(40, 20), "WEBP"),
    "animated gif": encoded(noise(40, 20), "GIF", save_all=True, append_images=[noise(40, 20).rotate(90)]),
    "bmp": encoded(noise(40, 20), "BMP"),
    "tiff": turned_by(6, "TIFF", compression="tiff_lzw"),
    "avif": encoded(noise(40, 20), "AVIF"),
    "jpeg2000": encoded(noise(40, 20), "JPEG2000"),
    "ppm": encoded(noise(40, 20), "PPM"),
}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The data with a few bytes changed, a part cut out, doubled, zeroed or moved, or the end cut off."""
    mutable = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        if not mutable:
            break
        start = int(rng.integers(len(mutable)))
        stop = min(len(mutable), start + int(rng.integers(1, 64)))
        kind = int(rng.integers(6))
        if kind == 0:
            mutable[start] = int(rng.integers(256))
        elif kind == 1:
            del mutable[start:stop]
        elif kind == 2:
            mutable[start:start] = mutable[start:stop]
        elif kind == 3:
            mutable[start:stop] = bytes(stop - start)
        elif kind == 4:
            mutable[start:stop] = b"\xff" * (stop - start)
        else:
            del mutable[start:]
    return bytes(mutable)


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_mutated_picture_is_a_picture_or_a_reason(name: str) -> None:
    rng = np.random.default_rng(16)
    num_good = 0
    for _ in range(NUM_PICTURES):
        data, begun = mutated(PICTURES[name], rng), time.monotonic()
        try:
            picture = load_rgb(data)
            assert picture.mode == "RGB"
            assert picture_size(data) == picture.size
            num_good += 1
        except BadImage as error:
            assert error.reason in {"empty_image", "not_an_image", "broken_image", "too_many_pixels"}
        assert time.monotonic() - begun < SLOWEST_S
    assert 0 < num_good < NUM_PICTURES


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("a.jpg", PICTURES["jpeg"]), ("a.json", b'{"x": 1}'), ("deep/ä.png", PICTURES["png"])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parquet_file() -> bytes:
    buffer = io.BytesIO()
    table = pa.table(
        {
            "id": [str(n) for n in range(20)],
            "text": [f"text {n}" for n in range(20)],
            "image": [{"bytes": PICTURES["png"], "path": None}] * 20,
            "x": list(range(20)),
        }
    )
    pq.write_table(table, buffer, row_group_size=7)
    return buffer.getvalue()


def jsonl_file() -> bytes:
    rows = [{"id": str(n), "text": f"ä {n}", "x": [n, None], "image": None} for n in range(20)]
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def mmeb_file() -> bytes:
    buffer = io.BytesIO()
    columns = {
        "qry_text": ["q"] * 5,
        "qry_img_path": [""] * 5,
        "tgt_text": [["a", "b"]] * 5,
        "tgt_img_path": [["", ""]] * 5,
    }
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "whole"),
    [(".tar", tar_file), (".parquet", parquet_file), (".jsonl", jsonl_file), (".parquet", mmeb_file)],
)
def test_a_mutated_file_gives_rows_that_are_good_or_have_a_reason(
    suffix: str, whole: Callable[[], bytes], tmp_path: Path
) -> None:
    rng, data = np.random.default_rng(16), whole()
    num_rows = len(list(read_rows(_written(tmp_path, suffix, data))))
    assert num_rows > 1
    outcomes = set()
    for _ in range(NUM_FILES):
        begun = time.monotonic()
        file = _written(tmp_path, suffix, mutated(data, rng))
        for row in read_rows(file, ReadOptions(columns=("x",))):
            row.id.encode()
            assert (row.refused is None) == bool(row.text or row.pictures or row.image == b"")
            outcomes.add(row.refused.reason if row.refused else "good")
        assert time.monotonic() - begun < SLOWEST_S
    assert {"good", "broken_shard" if suffix != ".jsonl" else "not_json"} <= outcomes
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20
    )  # KiB: no mutation made us allocate what it claims


def _written(folder: Path, suffix: str, data: bytes) -> Path:
    file = folder / f"a{suffix}"
    file.write_bytes(data)
    return file


def test_mutations_change_the_data_and_are_the_same_every_time() -> None:
    first, second = ([mutated(b"x" * 500, np.random.default_rng(seed)) for seed in range(50)] for _ in range(2))
    assert first == second and len(set(first)) > 45
    assert Image.open(io.BytesIO(PICTURES["jpeg"])).format == "JPEG"
