"""The pools of models of `judge` and `rerank`: a killed actor and a lost node cost no row and change none."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.ray.conftest import command, other_raylet, read_parts, run_job, wait_for, workers_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def arguments(job: str, samples: Path, near: Path, base: Path, output: Path) -> list[str]:
    model = f"judge.model={base}" if job == "judge" else f"model={base}"
    size = "samples_per_file=2" if job == "judge" else "queries_per_file=2"
    return [f"input={samples}", f"neighbours={near}", f"output={output}", "limit=60", model, size]


@pytest.fixture(scope="module")
def unbroken(
    samples: Path, near: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    rows = {}
    for job in ("judge", "rerank"):
        output = tmp_path_factory.mktemp(job) / "out"
        ended = run_job(job, *arguments(job, samples, near, base, output))
        assert ended.code == 0, ended.stderr
        rows[job] = read_parts(output)
    return rows


def num_written(output: Path) -> int:
    return len(list((output / "_work").glob("parts/report-*.json")))


def is_equal(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal but for the last bits of scores: another node may pad a batch otherwise."""
    scores = ("score", "scores")
    assert [{k: v for k, v in row.items() if k not in scores} for row in rows] == [
        {k: v for k, v in row.items() if k not in scores} for row in expected
    ]
    for row, other in zip(rows, expected, strict=True):
        for name in scores:
            if row.get(name) is not None:
                np.testing.assert_allclose(row[name], other[name], atol=1e-5)


@pytest.mark.parametrize("job", ["judge", "rerank"])
def test_a_killed_actor_is_made_up_for_twice_in_a_run(
    job: str, samples: Path, near: Path, base: Path, unbroken: dict[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with subprocess.Popen(
        command(job, *arguments(job, samples, near, base, output)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for number in (3, 12):
            wait_for(
                process,
                lambda: num_written(output) >= number and bool(workers_of(process.pid, "ModelActor")),  # noqa: B023
                every_s=0.01,
            )
            workers_of(process.pid, "ModelActor")[0].kill()
        stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert json.loads(stdout.strip().splitlines()[-1])["code"] == 0
    is_equal(read_parts(output), unbroken[job])


@pytest.mark.parametrize("job", ["judge", "rerank"])
def test_a_lost_node_is_made_up_for_by_the_other(
    job: str,
    two_nodes: Any,
    samples: Path,
    near: Path,
    base: Path,
    unbroken: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    with subprocess.Popen(
        command(job, *arguments(job, samples, near, base, output), "num_workers=4"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAY_ADDRESS": two_nodes.address},
    ) as process:
        wait_for(process, lambda: num_written(output) >= 3, every_s=0.01)
        psutil.Process(other_raylet(two_nodes)).kill()
        stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert json.loads(stdout.strip().splitlines()[-1])["code"] == 0
    is_equal(read_parts(output), unbroken[job])
