"""The script of two-stage mining: run whole, and again after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.ray.conftest import adds_up, kill_with_children

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


def command(more: list[str]) -> list[str]:
    small = ["batch_size=16", "num_steps=2", "lora.rank=2", "max_tokens=32", "save_every=1"]
    return ["sh", str(ROOT / "cluster" / "two-stage-mining.sh"), *small, *more]


def test_the_second_training_takes_what_the_first_ones_model_has_mined(
    samples: Path, base: Path, tmp_path: Path
) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SAMPLES": str(samples),
        "BASE": str(base),
        "OUT": str(tmp_path / "out"),
        "RULES": "top_k=6",
        "NEGATIVES": "2",
    }
    out = tmp_path / "out"
    with subprocess.Popen(
        command([]), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not (out / "query" / "_work").is_dir():
            assert process.poll() is None
            time.sleep(0.05)
        kill_with_children(process)
    first = (out / "train-1" / "_manifest.json").read_bytes()
    ended = subprocess.run(command([]), env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (out / "train-1" / "_manifest.json").read_bytes() == first
    counters = adds_up(out / "train-2")
    assert counters["read"] == pq.read_table(out / "mined").num_rows > 0
    assert (out / "train-2" / "model").is_dir()
