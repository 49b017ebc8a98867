"""`embed-corpus` of samples, `mine`, `judge` and `train` in a row, as a user runs them; and a judge that is killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mme5core.judge import Judge
from mme5core.sample_readers import read_samples
from mme5core.types import Sample
from tests.ray.conftest import Ended, adds_up, kill_when, read_parts, run_job, train_args

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def judge(samples: Path, near: Path, base: Path, output: Path, *more: str) -> Ended:
    return run_job(
        "judge", f"input={samples}", f"neighbours={near}", f"judge.model={base}", f"output={output}", "limit=30", *more
    )


def test_judged_samples_train_with_soft_labels(samples: Path, near: Path, base: Path, tmp_path: Path) -> None:
    output = tmp_path / "judged"
    ended = judge(samples, near, base, output, "select.fill=published", "select.count=2", "num_workers=2")
    assert ended.code == 0, ended.stderr
    counters = adds_up(output)
    assert counters["read"] == 30 and counters["pairs"] > 30
    rows = read_parts(output)
    sample = next(s for s in read_samples(output / "part-00000.parquet") if isinstance(s, Sample))
    scores = Judge.load(base).scores([(sample.query, sample.positive)], sample.instruction)
    assert abs(float(scores[0]) - sample.scores[0]) < 1e-4
    assert all(len(row["scores"]) == 1 + len(row["negatives"]) <= 3 for row in rows)
    more = ["num_negatives=2", "loss.kind=soft_label_kl", "num_steps=2", "batch_size=8"]
    arguments = [entry for entry in train_args(output, base, tmp_path / "run") if not entry.startswith("batch_size")]
    ended = run_job("train", *arguments, *more)
    assert ended.code == 0, ended.stderr
    again = judge(samples, near, base, output, "select.fill=published", "select.count=2")
    assert again.code == 0 and again.summary["reason"] == "already done"


@pytest.mark.parametrize("driver_only", [False, True])
def test_a_killed_judge_goes_on_with_the_parts_that_it_has(
    driver_only: bool, samples: Path, near: Path, base: Path, tmp_path: Path
) -> None:
    unbroken, output = tmp_path / "unbroken", tmp_path / "out"
    more = ["samples_per_file=2"]
    assert judge(samples, near, base, unbroken, *more).code == 0
    arguments = [f"input={samples}", f"neighbours={near}", f"judge.model={base}", f"output={output}", "limit=30", *more]

    def num_done() -> int:
        return len(list((output / "_work").glob("parts/report-*.json")))

    for number in (2, 5):
        kill_when("judge", *arguments, ready=lambda: num_done() >= number, driver_only=driver_only, every_s=0.01)  # noqa: B023
    reports = {file.name for file in (output / "_work").glob("parts/report-*.json")}
    assert 5 <= len(reports) < 15
    ended = judge(samples, near, base, output, *more)
    assert ended.code == 0, ended.stderr
    rows, expected = read_parts(output), read_parts(unbroken)
    assert [row | {"scores": None} for row in rows] == [row | {"scores": None} for row in expected]
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row["scores"], other["scores"], atol=1e-6)
