"""`rerank train` and `rerank` as a user runs them, and both killed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mme5core.reranker import Reranker
from mme5core.sample_readers import read_samples
from mme5core.types import Sample
from tests.ray.conftest import Ended, adds_up, kill_when, read_parts, run_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def training(samples: Path, base: Path, output: Path, *more: str) -> list[str]:
    small = ["batch_size=8", "num_steps=4", "learning_rate=1e-3", "lora.rank=4", "lora.targets=all", "save_every=1"]
    return [f"input={samples}", f"model={base}", f"output={output}", *small, *more]


@pytest.fixture(scope="module")
def reranker(samples: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker that has trained in two processes under DeepSpeed."""
    output = tmp_path_factory.mktemp("reranker") / "run"
    ended = run_job("rerank", "train", *training(samples, base, output, "num_workers=2", "list_negatives=1"))
    assert ended.code == 0, ended.stderr
    adds_up(output)
    assert "rerank train: " in ended.stderr
    return output / "model"


def arguments(samples: Path, near: Path, model: Path, output: Path, *more: str) -> list[str]:
    return [f"input={samples}", f"neighbours={near}", f"model={model}", f"output={output}", "limit=30", *more]


def rerank(*entries: Any) -> Ended:
    return run_job("rerank", *arguments(*entries))


def by_query(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped = defaultdict(list)
    for row in rows:
        grouped[row["query_id"]].append(row)
    return grouped


@pytest.mark.parametrize("method", ["pointwise", "listwise"])
def test_candidates_come_in_the_rerankers_order_and_none_is_lost(
    method: Any, samples: Path, near: Path, reranker: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    ended = rerank(samples, near, reranker, output, f"method={method}", "top_k=4", "num_workers=2")
    assert ended.code == 0, ended.stderr
    counters = adds_up(output)
    assert counters["read"] == 30 and counters["pairs"] == 4 * counters["kept"]
    before, after = by_query(read_parts(near)), by_query(read_parts(output))
    everyone = {
        sample.id: sample
        for part in sorted(samples.glob("part-*.parquet"))
        for sample in read_samples(part)
        if isinstance(sample, Sample)
    }
    assert list(after) == [name for name in everyone if name in after]
    model = Reranker.load(reranker, device="cpu", method=method)
    for place, (query_id, rows) in enumerate(after.items()):
        ids = [row["candidate_id"] for row in rows]
        mined = [row["candidate_id"] for row in sorted(before[query_id], key=lambda row: row["rank"])]
        assert sorted(ids[:4]) == sorted(mined[:4]) and ids[4:] == mined[4:]
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        scores = [row["score"] for row in rows[:4]]
        assert scores == sorted(scores, reverse=True) and all(row["score"] is None for row in rows[4:])
        if place < 3:
            query = everyone[query_id]
            alone = model.scores(query.query, [everyone[name].positive for name in mined[:4]], query.instruction)
            np.testing.assert_allclose(sorted(alone, reverse=True), scores, atol=2e-4)
    again = rerank(samples, near, reranker, output, f"method={method}", "top_k=4")
    assert again.code == 0 and again.summary["reason"] == "already done"


@pytest.mark.parametrize("driver_only", [False, True])
def test_a_killed_rerank_goes_on_with_the_parts_that_it_has(
    driver_only: bool, samples: Path, near: Path, reranker: Path, tmp_path: Path
) -> None:
    unbroken, output = tmp_path / "unbroken", tmp_path / "out"
    more = ["queries_per_file=2", "top_k=3"]
    assert rerank(samples, near, reranker, unbroken, *more).code == 0

    def num_done() -> int:
        return len(list((output / "_work").glob("parts/report-*.json")))

    for number in (2, 5):
        kill_when(
            "rerank",
            *arguments(samples, near, reranker, output, *more),
            ready=lambda: num_done() >= number,  # noqa: B023
            driver_only=driver_only,
            every_s=0.01,
        )
    assert 5 <= num_done() < 15
    ended = rerank(samples, near, reranker, output, *more)
    assert ended.code == 0, ended.stderr
    assert read_parts(output) == read_parts(unbroken)


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(samples: Path, base: Path, tmp_path: Path) -> None:
    more = ["num_steps=6", "list_negatives=1"]
    unbroken, output = tmp_path / "unbroken", tmp_path / "out"
    assert run_job("rerank", "train", *training(samples, base, unbroken, *more)).code == 0

    def num_steps() -> int:
        log = output / "log" / "metrics.jsonl"
        return len(log.read_text().splitlines()) if log.is_file() else 0

    for number in (2, 4):
        kill_when("rerank", "train", *training(samples, base, output, *more), ready=lambda: num_steps() >= number)  # noqa: B023
    ended = run_job("rerank", "train", *training(samples, base, output, *more))
    assert ended.code == 0, ended.stderr
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log" / "metrics.jsonl").read_text().splitlines()]
        for folder in (unbroken, output)
    ]
    assert len(losses[0]) == 6 and losses[0] == losses[1]
    assert pq.read_table(output / "_quarantine").num_rows == 0
