"""`judge` with a server, as a user runs it: resumed after kills, stopped by a budget, refused without logprobs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.schemas import NEIGHBOURS
from tests.core.asking.server import Reply, Served
from tests.ray.conftest import Ended, adds_up, kill_when, read_parts, run_job, train_args

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def reply(body: dict[str, Any], _: int) -> Reply:
    """Scores that follow from what is shown."""
    share = hashlib.sha256(json.dumps(body["messages"]).encode()).digest()[0] / 256
    top = [{"token": "Yes", "logprob": share - 2}, {"token": "No", "logprob": -1.5}]
    choice = {
        "message": {"role": "assistant", "content": "Yes"},
        "finish_reason": "length",
        "logprobs": {"content": [{"token": "Yes", "logprob": share - 2, "top_logprobs": top}]},
    }
    return 200, {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 1}}, {}


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served(reply)
    yield served
    served.server.shutdown()


def arguments(samples: Path, near: Path, server: Served, output: Path, *more: str) -> list[str]:
    return [
        f"input={samples}",
        f"neighbours={near}",
        f"judge.base_url={server.base_url}",
        "judge.model=m",
        "judge.concurrency=8",
        f"output={output}",
        "samples_per_file=10",
        *more,
    ]


def judge(*entries: Any) -> Ended:
    return run_job("judge", *arguments(*entries))


def test_a_killed_judge_asks_about_nothing_twice_but_what_was_in_flight(
    samples: Path, near: Path, server: Served, tmp_path: Path
) -> None:
    unbroken, output = tmp_path / "unbroken", tmp_path / "out"
    ended = judge(samples, near, server, unbroken)
    assert ended.code == 0, ended.stderr
    counters = adds_up(unbroken)
    num_pairs = len(server.requests)
    assert counters["pairs"] == num_pairs == counters["calls"] > 200
    slow, server.reply = server.reply, lambda body, n: time.sleep(0.02) or reply(body, n)
    server.requests.clear()
    for number in (60, 150):
        kill_when(
            "judge",
            *arguments(samples, near, server, output),
            ready=lambda: len(server.requests) >= number,  # noqa: B023
            driver_only=number == 150,
        )
    server.reply = slow
    ended = judge(samples, near, server, output)
    assert ended.code == 0, ended.stderr
    assert read_parts(output) == read_parts(unbroken)
    assert num_pairs <= len(server.requests) <= num_pairs + 2 * 8
    assert judge(samples, near, server, output).summary["reason"] == "already done"


def test_a_spent_budget_leaves_samples_pending_and_a_larger_one_goes_on(
    samples: Path, near: Path, server: Served, tmp_path: Path
) -> None:
    ended = judge(samples, near, server, tmp_path / "out", "limit=20", "budget.calls=20")
    assert ended.code == 3 and "budget" in ended.summary["reason"]
    counters = ended.summary["counters"]
    assert counters["pending"] > 0 and counters["kept"] > 0 and not (tmp_path / "out" / "_SUCCESS").exists()
    ended = judge(samples, near, server, tmp_path / "out", "limit=20", "budget.calls=900")
    assert ended.code == 0, ended.stderr
    assert adds_up(tmp_path / "out")["pending"] == 0


def test_a_server_without_logprobs_is_refused_after_one_answer(
    samples: Path, near: Path, server: Served, tmp_path: Path
) -> None:
    def without(body: dict[str, Any], n: int) -> Reply:
        status, answer, headers = reply(body, n)
        del answer["choices"][0]["logprobs"]
        return status, answer, headers

    server.reply = without
    ended = judge(samples, near, server, tmp_path / "out")
    assert ended.code == 2 and "gives no logprobs" in ended.summary["reason"], ended.summary
    assert len(server.requests) <= 16


def test_candidates_may_be_rows_of_a_corpus(samples: Path, near: Path, server: Served, tmp_path: Path) -> None:
    corpus = pa.table({"id": ["a", "b", "c"], "text": ["an apple", "a banana", "an apple"]})
    pq.write_table(corpus, tmp_path / "corpus.parquet")
    ids = [row["id"] for row in read_parts(samples)[:3]]
    pairs = [(ids[0], "a"), (ids[0], "b"), (ids[0], "c"), (ids[1], "b"), (ids[1], "gone"), ("nobody", "a")]
    rows = [
        {"query_id": query, "candidate_id": candidate, "rank": rank, "score": 0.5, "source": "nearest"}
        for rank, (query, candidate) in enumerate(pairs, 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows, NEIGHBOURS), tmp_path / "near.parquet")
    more = [f"candidates={tmp_path}/corpus.parquet", "limit=3", "select.beta=0", "select.fill=published"]
    ended = judge(samples, tmp_path / "near.parquet", server, tmp_path / "out", *more)
    assert ended.code == 0, ended.stderr
    counters = adds_up(tmp_path / "out")
    assert counters["pairs"] == 5  # an apple once; two positives
    assert counters["unknown_neighbours"] == 2 and counters["refused"] == {"no_candidate": 1}
    for row in read_parts(tmp_path / "out"):
        assert set(row["negative_ids"]) <= {"a", "b"} and len(row["negatives"]) == len(row["scores"]) - 1


def test_judged_samples_are_exported_as_unime_v2_has_them_and_train_from_there(
    samples: Path, near: Path, base: Path, server: Served, tmp_path: Path
) -> None:
    assert judge(samples, near, server, tmp_path / "judged", "select.fill=published", "select.count=2").code == 0
    ended = run_job("judge", "export", f"input={tmp_path}/judged", f"output={tmp_path}/export")
    assert ended.code == 0, ended.stderr
    rows = json.loads((tmp_path / "export" / "train_data_scores.json").read_text())
    judged = read_parts(tmp_path / "judged")
    assert len(rows) == len(judged) == ended.summary["counters"]["kept"]
    for row, own in zip(rows, judged, strict=True):
        assert [row["query_pos_scores"], *row["hard_negatives_scores"]] == own["scores"]
        assert bool(row["pos_image"]) == (own["positive"]["image"] is not None)
    more = [f"images={tmp_path}/export", "num_negatives=2", "loss.kind=soft_label_kl", "num_steps=2", "batch_size=8"]
    arguments = [entry for entry in train_args(tmp_path, base, tmp_path / "run") if not entry.startswith("batch_size")]
    arguments[0] = f"input={tmp_path}/export/train_data_scores.json"
    ended = run_job("train", *arguments, *more)
    assert ended.code == 0, ended.stderr
    assert adds_up(tmp_path / "run")["read"] == len(rows)
