"""What servers bill is booked, whatever they send for it, and nothing is paid for twice."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from mme5core.asking import in_batches
from mme5core.asking.answer_log import ANSWERED, REJECTED
from mme5core.asking.batch_record import num_with_server
from mme5core.asking.pricing import Price
from mme5core.asking.token_usage import Tokens, tokens_of
from mme5core.errors import BAD_INPUT, RESUMABLE
from tests.core.asking.server import ANSWER, GOOD, NUM_PICTURES, Reply, Served, Work, completion

PRICE = {"price": Price(10.0, 50.0)}


def billed(usage: Any, **changes: Any) -> Reply:
    return 200, completion(json.dumps(GOOD)) | {"usage": usage} | changes, {}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 1120}, Tokens(100, 1020)),
        ({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 90}, Tokens(100, 20)),
        ({"prompt_tokens": -100, "completion_tokens": -20, "total_tokens": -120}, Tokens()),
        ({"prompt_tokens": "100", "completion_tokens": 20.0}, Tokens(100, 20)),
        ({"prompt_tokens": None, "total_tokens": 50}, Tokens(0, 50)),
        ({"input_tokens": 7, "output_tokens": 8}, Tokens(7, 8)),
        ({"prompt_tokens": "many", "completion_tokens": [1], "total_tokens": float("inf")}, Tokens()),
        ([1, 2], Tokens()),
        (None, Tokens()),
    ],
)
def test_tokens_are_what_is_billed_and_never_negative(usage: Any, tokens: Tokens) -> None:
    assert tokens_of({"usage": usage}) == tokens


@pytest.mark.parametrize("calls_per_batch", [None, 20])
def test_thinking_that_only_the_total_counts_is_booked_and_a_budget_in_money_holds(
    calls_per_batch: int | None, work: Work, serve: Any
) -> None:
    served = serve(lambda request, n: billed({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 1120}))
    _, stop = work.ask(
        served.base_url, budget=PRICE | {"budget_usd": 0.5}, concurrency=1, calls_per_batch=calls_per_batch
    )
    each = (100 * 10 + 1020 * 50) / 1e6
    assert work.usage.usd == pytest.approx(each * len(served.requests))
    assert stop.code == RESUMABLE and 0.5 <= work.usage.usd < 0.5 + (4 if calls_per_batch is None else 10) * each


@pytest.mark.parametrize("calls_per_batch", [None, 20])
def test_negative_usage_is_no_money(calls_per_batch: int | None, work: Work, serve: Any) -> None:
    odd = billed({"prompt_tokens": -100, "completion_tokens": -20, "total_tokens": -120})
    served = serve(lambda request, n: odd if n % 2 else ANSWER)
    work.ask(served.base_url, budget=PRICE, calls_per_batch=calls_per_batch)
    assert work.limiter.used.usd >= 0.002 * NUM_PICTURES / 2 and work.usage.usd >= 0.002 * NUM_PICTURES / 2
    assert all(entry and entry.usd > 0 for entry in work.entries())


UNREADABLE = [
    {"choices": [{}]},
    {"choices": [{"message": "text"}]},
    {"choices": {}},
    {"choices": [{"message": {"content": 5}}]},
]


@pytest.mark.parametrize("odd", UNREADABLE)
def test_what_an_unreadable_answer_took_is_booked_and_a_second_one_settles_its_sample(
    odd: dict[str, Any], work: Work, serve: Any
) -> None:
    seeds: list[int] = []

    def reply(request: dict[str, Any], n: int) -> Reply:
        seeds.extend([request["seed"]] * (n == 5))
        return (200, completion("") | odd, {}) if request["seed"] in seeds else ANSWER

    served = serve(reply)
    counts, stop = work.ask(served.base_url, budget=PRICE, max_attempts=5)
    assert counts == {"kept": NUM_PICTURES - 1, "refused": 1} and stop.code == 0
    assert len(served.requests) == NUM_PICTURES + 1 == work.usage.calls
    assert work.usage.prompt_tokens == 100 * (NUM_PICTURES + 1) == work.limiter.used.prompt_tokens
    assert work.usage.usd == pytest.approx(0.002 * (NUM_PICTURES + 1))
    (refused,) = [entry for entry in work.entries() if entry and entry.status == REJECTED]
    assert refused.answer["reason"] == "unreadable_answer"
    work.ask(served.base_url)
    assert len(served.requests) == NUM_PICTURES + 1  # it is not paid for again


def test_an_unreadable_answer_that_passes_costs_its_sample_nothing(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (200, completion("") | {"choices": [{}]}, {}) if n in (1, 7) else ANSWER)
    counts, _ = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES} and work.usage.calls == NUM_PICTURES + 2


def test_an_unreadable_answer_in_a_batch_is_asked_for_once_more_and_no_more(work: Work, serve: Any) -> None:
    odd: set[int] = set()

    def reply(request: dict[str, Any], n: int) -> Reply:
        odd.update([request["seed"]] * (n == 9))
        return (200, completion("") | {"choices": [{}]}, {}) if request["seed"] in odd else ANSWER

    served = serve(reply)
    counts, _ = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES - 1, "pending": 1}
    counts, _ = work.ask(served.base_url, calls_per_batch=50, form="json_schema")
    assert counts == {"refused": 1} and len(served.requests) == NUM_PICTURES + 1
    assert work.usage.prompt_tokens == 100 * (NUM_PICTURES + 1)


def test_a_reply_that_bills_an_error_is_booked(work: Work, serve: Any) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 0}
    served = serve(lambda request, n: (200, {"error": "cut", "usage": usage}, {}) if n % 5 == 0 else ANSWER)
    counts, _ = work.ask(served.base_url, budget=PRICE, max_attempts=6)
    assert counts == {"kept": NUM_PICTURES}
    assert work.usage.prompt_tokens == 100 * len(served.requests) == work.limiter.used.prompt_tokens


def change_answers(served: Served, change: Any) -> None:
    """Change the lines of every file of answers."""
    get = served.batches.get

    def changed(path: str, query: str) -> Any:
        content = get(path, query)
        return b"\n".join(change(content.splitlines())) if isinstance(content, bytes) else content

    served.batches.get = changed  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "bad",
    [
        b"{",
        b"no JSON",
        b"[]",
        b'{"custom_id": null}',
        b'{"custom_id": "x"}',
        b'{"custom_id": "3", "response": {}}',
        b"\xff",
    ],
)
def test_the_good_lines_of_a_batch_are_taken_whatever_its_bad_ones(bad: bytes, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    change_answers(served, lambda lines: [bad, *lines[:-1], bad])
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES - 1, "pending": 1} and stop.code == 0 and not num_with_server(work.root)


def without(served: Served, kind: str, *, times: int) -> None:
    """The file of this kind is not there, so often."""
    get, asked = served.batches.get, []

    def late(path: str, query: str) -> Any:
        ids = [batch[f"{kind}_file_id"] for batch in served.batches._batches.values()]
        if path.endswith("/content") and path.split("/")[3] in ids:
            asked.append(path)
            if len(asked) <= times:
                return 404, {"error": {"message": "no such file"}}
        return get(path, query)

    served.batches.get = late  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["output", "error"])
def test_a_file_of_a_batch_that_comes_late_is_waited_for(kind: str, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (400, {"error": "too small"}, {}) if n == 9 else ANSWER)
    without(served, kind, times=2)
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES - 1, "refused": 1} and stop.code == 0 and not work.notes


def test_a_file_of_errors_that_is_gone_costs_the_answers_nothing(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (400, {"error": "too small"}, {}) if n == 9 else ANSWER)
    without(served, "error", times=999)
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES - 1, "pending": 1} and stop.code == 0 and not num_with_server(work.root)


def test_answers_whose_file_is_gone_stay_with_the_server_and_are_not_paid_for_again(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    get = served.batches.get
    without(served, "output", times=999)
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": 1, "pending": NUM_PICTURES - 1} and num_with_server(work.root) == NUM_PICTURES - 1
    (note,) = work.notes
    assert "is not there: its samples are pending" in note and "remove" in note
    served.batches.get = get
    counts, stop = work.ask(served.base_url, calls_per_batch=50, form="json_schema")
    assert counts == {"kept": NUM_PICTURES - 1} and stop.code == 0 and len(served.requests) == NUM_PICTURES


def rename(served: Served, **statuses: Any) -> None:
    """What the server says of a batch, by what its status is."""
    get = served.batches.get

    def renamed(path: str, query: str) -> Any:
        reply = get(path, query)
        if isinstance(reply, dict) and isinstance(reply.get("data"), list):  # the list of all batches
            return reply | {"data": [named(batch) for batch in reply["data"]]}
        return named(reply)

    def named(batch: Any) -> Any:
        is_known = isinstance(batch, dict) and batch.get("status") in statuses
        return batch | statuses[batch["status"]] if is_known else batch

    served.batches.get = renamed  # type: ignore[method-assign]


@pytest.mark.parametrize("status", ["COMPLETED", "Completed", "JobState.COMPLETED", "succeeded", "BATCH.ENDED"])
def test_a_status_in_another_spelling_is_understood(status: str, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    rename(served, completed={"status": status}, in_progress={"status": "IN_PROGRESS"})
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        ({}, "refuses a batch (it gives no reason)"),
        ({"errors": None, "error": {"message": "no quota"}}, "refuses a batch (no quota)"),
        ({"errors": ["too long"]}, "refuses a batch (too long)"),
        ({"errors": {"data": [{"code": "bad_url"}]}}, "refuses a batch (bad_url)"),
    ],
)
def test_a_batch_that_failed_says_why_or_that_nobody_does(
    errors: dict[str, Any], line: str, work: Work, serve: Any
) -> None:
    served = serve(lambda request, n: ANSWER)
    rename(served, in_progress={"status": "FAILED"} | errors, completed={"status": "FAILED"} | errors)
    _, stop = work.ask(served.base_url, calls_per_batch=50)
    assert stop.code == BAD_INPUT and line in stop.reason


def test_one_404_of_a_batch_that_is_there_is_asked_again(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    get, asked = served.batches.get, []

    def flaky(path: str, query: str) -> Any:
        if path.startswith("/v1/batches/") and not asked:
            asked.append(path)
            return 404, {"error": {"message": "not here"}}
        return get(path, query)

    served.batches.get = flaky  # type: ignore[method-assign]
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0


def test_lines_of_a_batch_that_failed_by_a_status_that_passes_are_pending(work: Work, serve: Any) -> None:
    passing = {9: 404, 10: 500, 11: 429}
    served = serve(lambda request, n: (passing[n], {"error": "later"}, {}) if n in passing else ANSWER)
    counts, _ = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES - 3, "pending": 3} and work.statuses()[ANSWERED] == NUM_PICTURES - 3


def test_polls_for_a_file_end(work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_batches, "POLLS_FOR_A_FILE", 2)
    served = serve(lambda request, n: ANSWER)
    without(served, "output", times=999)
    started = time.monotonic()
    work.ask(served.base_url, calls_per_batch=50)
    assert time.monotonic() - started < 30


def test_answers_of_a_batch_that_failed_are_taken_where_there_are_any(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    rename(served, completed={"status": "failed", "errors": ["stopped half-way"]})
    change_answers(served, lambda lines: lines[:20])
    counts, _ = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": 21, "pending": NUM_PICTURES - 21} and not num_with_server(work.root)
