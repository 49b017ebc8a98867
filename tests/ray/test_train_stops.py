"""`train` stopped by SIGTERM or Ctrl-C, and failures that are not tried again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.core.backbones.families import build
from tests.core.training.runs import text_samples
from tests.ray.conftest import command, kill_with_children, run_job, wait_for

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of two processes on a few texts."""
    root = tmp_path_factory.mktemp("stops")
    pq.write_table(text_samples(), root / "samples.parquet")
    build("qwen2_vl", root / "base")
    return [f"input={root / 'samples.parquet'}", f"model={root / 'base'}", "batch_size=8", "num_workers=2"]


def num_steps(output: Path) -> int:
    log = output / "log" / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)]
)
def test_a_stop_ends_the_training_in_seconds_with_a_checkpoint_of_its_last_step(
    number: signal.Signals, to_all: bool, args: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with subprocess.Popen(
        command("train", *args, f"output={output}", "num_steps=100000", "save_every=50000", "zero_stage=0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            wait_for(process, lambda: num_steps(output) >= 3)
            began = time.monotonic()
            if to_all:
                os.killpg(process.pid, number)  # as a terminal does
            else:
                process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
            assert time.monotonic() - began < 45
        finally:
            if process.poll() is None:
                kill_with_children(process)
    assert process.returncode == 3, stderr
    assert json.loads(stdout.splitlines()[-1])["code"] == 3
    assert "Traceback" not in stderr
    assert not (output / "model").exists()
    (meta,) = (output / "checkpoints").glob("step-*/meta.json")
    assert json.loads(meta.read_text())["step"] == num_steps(output) >= 3


@pytest.mark.slow
def test_gradients_of_nan_are_one_line_and_not_tried_again(args: list[str], tmp_path: Path) -> None:
    ended = run_job(
        "train", *args, f"output={tmp_path / 'out'}", "num_steps=20", "zero_stage=0", "learning_rate=1e30",
        "warmup_ratio=0",
    )  # fmt: skip
    assert ended.code == 1, ended.stderr
    assert "lower learning_rate" in ended.summary["reason"]
    assert "Traceback" not in ended.stderr and ended.stderr.count("weights train, in") == 1
    assert not (tmp_path / "out" / "model").exists()
