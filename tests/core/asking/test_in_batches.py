"""The actor that asks in batches, without Ray: what is sent once, what a kill leaves behind, what servers refuse."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mme5core.asking import in_batches
from mme5core.asking.answer_log import ANSWERED, REJECTED, Entry
from mme5core.asking.batch_api import BatchClient
from mme5core.asking.batch_record import BatchRecord, batch_folder, num_with_server
from mme5core.asking.failures import ServerUnavailable
from mme5core.asking.in_batches import InBatches
from mme5core.asking.log_file import LogFile
from mme5core.asking.pricing import Price
from mme5core.errors import BAD_INPUT, RESUMABLE
from tests.core.asking.server import ANSWER, NUM_PICTURES, Reply, Served, Work


class Killed(BaseException):
    """No `except` of ours catches it."""


def batches_of(served: Served) -> list[dict[str, Any]]:
    return list(served.batches._batches.values())


def ask_until_killed(work: Work, served: Served, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A run that dies at a call of the client, as by SIGKILL: nothing is written after it."""

    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(BatchClient, where, die)
        with pytest.raises(Killed):
            work.ask(served.base_url, calls_per_batch=15)


def test_one_call_shows_the_form_and_the_rest_goes_in_batches(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    counts, stop = work.ask(served.base_url, calls_per_batch=15, budget={"price": Price(10.0, 50.0)})
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0
    assert served.online == 1 and [batch["endpoint"] for batch in batches_of(served)] == ["/v1/chat/completions"] * 3
    assert len(served.requests) == len({request["seed"] for request in served.requests}) == NUM_PICTURES
    usage = work.usage
    assert (work.num_done, usage.calls, usage.prompt_tokens) == (NUM_PICTURES, NUM_PICTURES, 100 * NUM_PICTURES)
    assert work.limiter.used == usage and work.limiter.in_flight == 0
    entries = work.entries()
    assert {entry.answer["usd"] for entry in entries if entry} == {0.002}
    assert not num_with_server(work.root)


def test_rows_are_those_of_single_calls(work: Work, serve: Any, tmp_path: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url, calls_per_batch=15)
    batched = work.entries()
    for file in work.answers.iterdir():
        file.unlink()
    work.ask(served.base_url)
    assert work.entries() == batched


@pytest.mark.parametrize("where", ["state", "replies"])
def test_a_killed_run_finds_its_batches_again(
    where: str, work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    ask_until_killed(work, served, monkeypatch, where)
    sent = len(batches_of(served))
    assert sent and num_with_server(work.root)
    counts, _ = work.ask(served.base_url, calls_per_batch=15, form="json_schema")
    assert counts["kept"] == NUM_PICTURES - 1  # but for the one that was asked by itself
    assert len(served.requests) == NUM_PICTURES and len(batches_of(served)) == 3


def test_a_run_that_was_killed_before_it_heard_of_its_batch_finds_it_by_name(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    submit = BatchClient.submit

    async def submit_and_die(self: BatchClient, *args: Any) -> str:
        await submit(self, *args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(BatchClient, "submit", submit_and_die)
        with pytest.raises(Killed):
            work.ask(served.base_url, calls_per_batch=39)
    (record,) = BatchRecord.of_file(batch_folder(work.root), 0)
    assert record.batch_id is None and len(record.numbers) == 39
    counts, _ = work.ask(served.base_url, calls_per_batch=39, form="json_schema")
    assert counts == {"kept": 39} and len(batches_of(served)) == 1 and len(served.requests) == NUM_PICTURES


def test_a_run_that_was_killed_before_it_sent_anything_sends_it(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    ask_until_killed(work, served, monkeypatch, "submit")
    assert num_with_server(work.root) and not batches_of(served)
    counts, _ = work.ask(served.base_url, calls_per_batch=15, form="json_schema")
    assert counts == {"kept": NUM_PICTURES - 1} and len(served.requests) == NUM_PICTURES


def test_a_run_that_was_killed_while_it_wrote_answers_writes_each_once(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    write, written = InBatches.write_reply, []

    def write_and_die(self: InBatches, *args: Any) -> str:
        if len(written) == 7:
            raise Killed
        written.append(args)
        return write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(InBatches, "write_reply", write_and_die)
        with pytest.raises(Killed):
            work.ask(served.base_url, calls_per_batch=39)
    assert work.num_done == 8
    counts, _ = work.ask(served.base_url, calls_per_batch=39, form="json_schema")
    assert counts == {"kept": 32} and len(served.requests) == NUM_PICTURES
    assert work.usage.calls == NUM_PICTURES == work.limiter.used.calls


def test_answers_of_a_batch_of_the_first_version_have_the_hash_and_seed_of_single_calls(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url)
    single = work.entries()
    for file in work.answers.iterdir():
        file.unlink()
    write = InBatches.write_reply

    def write_old(self: InBatches, file: LogFile, form: str, reply: Any, calls: Any) -> str:
        custom_id = "-".join(reply.custom_id.split("-")[:3])
        return write(self, file, form, replace(reply, custom_id=custom_id), calls)

    monkeypatch.setattr(InBatches, "write_reply", write_old)
    work.ask(served.base_url, calls_per_batch=15)
    assert work.entries() == single


def test_batches_are_taken_up_though_the_next_run_asks_call_by_call(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    ask_until_killed(work, served, monkeypatch, "state")
    counts, _ = work.ask(served.base_url, in_batches=True, form="json_schema")
    assert counts == {"kept": NUM_PICTURES - 1} and len(served.requests) == NUM_PICTURES


def test_batches_with_another_server_are_not_forgotten(work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(lambda request, n: ANSWER)
    ask_until_killed(work, served, monkeypatch, "state")
    other = serve(lambda request, n: ANSWER)
    _, stop = work.ask(other.base_url, calls_per_batch=15)
    assert stop.code == BAD_INPUT and served.base_url in stop.reason and num_with_server(work.root)
    assert not other.requests


def test_a_budget_of_calls_is_kept_to_the_call(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    counts, stop = work.ask(served.base_url, calls_per_batch=15, budget={"budget_calls": 20})
    assert stop.code == RESUMABLE and "budget" in stop.reason
    assert counts == {"kept": 20, "pending": 20} and len(served.requests) == 20
    counts, stop = work.ask(served.base_url, calls_per_batch=15, form="json_schema")
    assert counts == {"kept": 20} and len(served.requests) == NUM_PICTURES


def test_a_budget_of_money_is_passed_by_no_more_than_what_was_in_flight(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    budget = {"budget_usd": 0.021, "price": Price(10.0, 50.0)}  # 0.002 each
    _, stop = work.ask(served.base_url, calls_per_batch=15, budget=budget)
    assert stop.code == RESUMABLE and 10 <= len(served.requests) <= 11


def test_what_was_answered_elsewhere_is_not_sent(work: Work, serve: Any, tmp_path: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url, budget={"budget_calls": 10})
    cache = work.answers.rename(tmp_path / "cache")
    work.answers.mkdir()
    counts, _ = work.ask(served.base_url, calls_per_batch=40, cache=str(cache), form="json_schema")
    assert counts == {"kept": NUM_PICTURES} and len(served.requests) == NUM_PICTURES
    assert work.usage.calls == NUM_PICTURES - 10 == work.limiter.used.calls


def test_lines_that_failed_are_pending_or_refused_as_calls_are(work: Work, serve: Any) -> None:
    def reply(request: dict[str, Any], n: int) -> Reply:
        if 10 <= n < 15:
            return 500, {"error": {"message": "broke"}}, {}
        return (400, {"error": {"message": "image too small"}}, {}) if 20 <= n < 23 else ANSWER

    served = serve(reply)
    counts, stop = work.ask(served.base_url, calls_per_batch=15)
    assert counts == {"kept": NUM_PICTURES - 8, "refused": 3, "pending": 5} and stop.code == 0
    assert work.statuses() == {ANSWERED: NUM_PICTURES - 8, REJECTED: 3, None: 5}
    assert work.usage.calls == NUM_PICTURES
    counts, _ = work.ask(served.base_url, calls_per_batch=15, form="json_schema")
    assert counts == {"kept": 5}


def change_lines(served: Served, change: Callable[[int], dict[str, Any]]) -> None:
    """In the files of answers that the server gives, lines are changed as said of their numbers."""
    get = served.batches.get

    def changed(path: str, query: str) -> Any:
        found = get(path, query)
        if not isinstance(found, bytes):
            return found
        lines = [json.loads(line) | change(number) for number, line in enumerate(found.splitlines())]
        return "\n".join(map(json.dumps, lines)).encode()

    served.batches.get = changed


def failing(served: Served, code: str, times: int) -> None:
    """Batches that the server makes are said to have failed, the first few times."""
    post = served.batches.post

    def failed(*args: Any) -> Any:
        made = post(*args)
        if made and made["object"] == "batch" and len(batches_of(served)) <= times:
            made |= {"status": "failed", "errors": {"object": "list", "data": [{"code": code, "message": f"{code}!"}]}}
        return made

    served.batches.post = failed  # type: ignore[method-assign]


def test_a_batch_that_the_server_refuses_stops_the_job_and_says_why(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    failing(served, "invalid_model", 99)
    _, stop = work.ask(served.base_url, calls_per_batch=50)
    assert stop.code == BAD_INPUT and "refuses a batch (invalid_model!)" in stop.reason
    assert work.usage.calls == 1 == work.limiter.used.calls and not num_with_server(work.root)


def test_an_account_without_money_leaves_the_batches_to_the_next_run(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    failing(served, "billing_hard_limit_reached", 1)
    get, polls = served.batches.get, []
    served.batches.get = lambda path, query: polls.append(path) or get(path, query)  # type: ignore[func-returns-value]
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert stop.code == RESUMABLE and "no money left" in stop.reason and counts["kept"] == 1 == len(polls)
    assert work.usage.calls == 1 == work.limiter.used.calls and not num_with_server(work.root)
    counts, stop = work.ask(served.base_url, calls_per_batch=50, form="json_schema")
    assert counts == {"kept": NUM_PICTURES - 1} and len(batches_of(served)) == 2


@pytest.mark.parametrize(
    "reply",
    [
        (402, {"error": {"message": "pay"}}),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}),
        (400, {"error": {"message": "pay", "code": "billing_hard_limit_reached"}}),
    ],
)
def test_an_account_without_money_for_a_batch_is_resumable_too(reply: Any, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    served.batches.post = lambda *_: reply
    counts, stop = work.ask(served.base_url, calls_per_batch=50, max_attempts=1)
    assert stop.code == RESUMABLE and f"no money left ({reply[0]})" in stop.reason and counts["kept"] == 1
    assert not num_with_server(work.root)  # another endpoint may do the rest


@pytest.mark.parametrize(
    "unpaid",
    [
        (402, {"error": {"message": "pay"}}, {}),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, {}),
        (400, {"error": {"message": "pay", "code": "billing_hard_limit_reached"}}, {}),
    ],
)
def test_lines_for_which_the_money_did_not_suffice_are_asked_again(unpaid: Reply, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER if n <= 12 else unpaid)
    counts, stop = work.ask(served.base_url, calls_per_batch=20)
    assert stop.code == RESUMABLE and f"no money left ({unpaid[0]})" in stop.reason
    assert counts == {"kept": 12, "pending": NUM_PICTURES - 12} and work.statuses()[REJECTED] == 0
    assert not num_with_server(work.root) and work.limiter.in_flight == 0
    served.reply = lambda request, n: ANSWER
    counts, stop = work.ask(served.base_url, calls_per_batch=20, form="json_schema")
    assert counts == {"kept": NUM_PICTURES - 12} and stop.code == 0


def test_a_batch_is_not_asked_for_again_and_again_where_there_is_no_money(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    post, asked = served.batches.post, []

    def no_money(path: str, *args: Any) -> Any:
        if path != "/v1/batches":
            return post(path, *args)
        asked.append(path)
        return 429, {"error": {"message": "pay", "code": "insufficient_quota"}}

    served.batches.post = no_money
    _, stop = work.ask(served.base_url, calls_per_batch=50, max_attempts=5)
    assert stop.code == RESUMABLE and "no money left (429)" in stop.reason and len(asked) == 1


def test_a_batch_of_which_nobody_knows_whether_it_was_sent_is_looked_for_by_the_next_run(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    post = served.batches.post
    find = BatchClient.find

    def made_and_failed(path: str, *args: Any) -> Any:
        made = post(path, *args)
        return (500, {"error": {"message": "broke"}}) if path == "/v1/batches" else made

    async def not_now(*_: Any, **__: Any) -> None:
        raise ServerUnavailable("no Batch API now", 0)

    served.batches.post = made_and_failed
    monkeypatch.setattr("mme5core.asking.batch_api.backoff_s", lambda attempt: 0.01)
    monkeypatch.setattr(BatchClient, "find", not_now)
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts["kept"] == 1 and num_with_server(work.root) == NUM_PICTURES - 1
    monkeypatch.setattr(BatchClient, "find", find)
    served.batches.post = post
    counts, stop = work.ask(served.base_url, calls_per_batch=50, form="json_schema")
    assert counts == {"kept": NUM_PICTURES - 1} and stop.code == 0
    assert len(batches_of(served)) == 1 and len(served.requests) == NUM_PICTURES


@pytest.mark.parametrize("status", [402, 401, 404])
def test_what_a_server_says_to_a_search_tells_nothing_of_the_batch(
    status: int, work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    post, get = served.batches.post, served.batches.get

    def made_and_failed(path: str, *args: Any) -> Any:
        made = post(path, *args)
        return (500, {"error": {"message": "broke"}}) if path == "/v1/batches" else made

    served.batches.post = made_and_failed
    served.batches.get = lambda path, query: (status, {"error": {"message": "no"}})
    monkeypatch.setattr("mme5core.asking.batch_api.backoff_s", lambda attempt: 0.01)
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts["kept"] == 1 and num_with_server(work.root) == NUM_PICTURES - 1
    served.batches.post, served.batches.get = post, get
    counts, stop = work.ask(served.base_url, calls_per_batch=50, form="json_schema")
    assert counts == {"kept": NUM_PICTURES - 1} and stop.code == 0 and len(batches_of(served)) == 1


def test_answers_of_a_batch_are_on_the_disk_before_its_record_is_gone(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    seen: list[str] = []
    remove, fsync = BatchRecord.remove, os.fsync

    def remove_seen(self: BatchRecord, folder: Path) -> None:
        seen.append("removed")
        remove(self, folder)

    def fsync_seen(descriptor: int) -> None:
        fsync(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".answers"):
            seen.append("synced")

    write = LogFile.write

    def write_seen(self: LogFile, entry: Entry) -> None:
        seen.append("written")
        write(self, entry)

    monkeypatch.setattr(BatchRecord, "remove", remove_seen)
    monkeypatch.setattr(LogFile, "write", write_seen)
    monkeypatch.setattr("os.fsync", fsync_seen)
    work.ask(served.base_url, calls_per_batch=50)
    place = seen.index("removed")
    last_written = max(n for n, what in enumerate(seen[:place]) if what == "written")
    assert seen[:place].count("written") == NUM_PICTURES and "synced" in seen[last_written:place]


@pytest.mark.parametrize("response", [{"status_code": 502, "body": "<html>bad gateway</html>"}, "error", None])
def test_a_line_that_is_not_of_the_protocol_leaves_its_sample_pending(response: Any, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    change_lines(served, lambda number: {"response": response} if number == 3 else {})
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES - 1, "pending": 1} and stop.code == 0 and not num_with_server(work.root)


def test_the_file_of_a_batch_that_is_refused_does_not_stay_with_the_server(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    post, delete, deleted = served.batches.post, served.batches.delete, []
    served.batches.post = lambda path, *args: (
        (400, {"error": {"message": "no such endpoint"}}) if path == "/v1/batches" else post(path, *args)
    )
    served.batches.delete = lambda path: deleted.append(path) or delete(path)  # type: ignore[func-returns-value]
    _, stop = work.ask(served.base_url, calls_per_batch=50)
    assert stop.code == BAD_INPUT and "no such endpoint" in stop.reason and len(deleted) == 1


def test_a_job_that_must_stop_does_not_wait_for_its_other_batches(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    failing(served, "invalid_model", 1)
    served.batches._batch_s = lambda: 3600.0
    started = time.monotonic()
    counts, stop = work.ask(served.base_url, calls_per_batch=20)
    assert stop.code == BAD_INPUT and "invalid_model" in stop.reason and time.monotonic() - started < 60
    assert counts["kept"] == 1 and num_with_server(work.root)  # the other one is left to the next run


def test_a_batch_for_which_the_queue_is_full_is_sent_again_in_smaller_ones(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    failing(served, "token_limit_exceeded", 2)
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    sizes = [batch["size"] for batch in batches_of(served)]
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0 and sizes == [39, 19, 9, 9, 9, 9, 3]
    assert len(served.requests) == NUM_PICTURES == work.limiter.used.calls
    assert not [name for name in served.batches._files if name in {b["input_file_id"] for b in batches_of(served)}]


def test_a_queue_that_is_full_for_a_single_call_stops_the_job(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    failing(served, "token_limit_exceeded", 999)
    counts, stop = work.ask(served.base_url, calls_per_batch=4)
    assert stop.code == RESUMABLE and "queue for batches is full (token_limit_exceeded!)" in stop.reason
    assert counts["kept"] == 1 and work.limiter.used.calls == 1


def test_a_batch_that_expired_is_pending_and_costs_what_was_done_of_it(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    late = {"response": None, "error": {"code": "batch_expired", "message": "too late"}}
    change_lines(served, lambda number: late if number >= 10 else {})
    get = served.batches.get

    def expired(path: str, query: str) -> Any:
        found = get(path, query)
        is_done = isinstance(found, dict) and found.get("status") == "completed"
        return found | {"status": "expired"} if is_done else found

    served.batches.get = expired
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": 11, "pending": 29} and stop.code == 0
    assert work.usage.calls == 11 == work.limiter.used.calls and not num_with_server(work.root)


def test_a_server_without_a_batch_api_is_one_line(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    served.batches.post = lambda *_: None
    counts, stop = work.ask(served.base_url, calls_per_batch=15, max_attempts=1)
    assert stop.code == BAD_INPUT and "no Batch API" in stop.reason and "\n" not in stop.reason
    assert counts["kept"] == 1 and not num_with_server(work.root)


def test_files_are_cut_at_the_size_that_servers_take(work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(lambda request, n: ANSWER)
    monkeypatch.setattr(in_batches, "MAX_FILE_BYTES", 50_000)
    counts, _ = work.ask(served.base_url, calls_per_batch=50)
    sizes = [batch["bytes"] for batch in batches_of(served)]
    assert counts == {"kept": NUM_PICTURES} and len(sizes) > 2 and max(sizes) <= 50_000
    assert len(served.requests) == NUM_PICTURES == work.limiter.used.calls


def test_a_batch_that_the_server_made_before_it_failed_is_not_made_twice(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    monkeypatch.setattr("mme5core.asking.batch_api.backoff_s", lambda attempt: 0.01)
    post = served.batches.post

    def made_and_failed(path: str, *args: Any) -> Any:
        made = post(path, *args)
        return (500, {"error": {"message": "broke"}}) if path == "/v1/batches" else made

    served.batches.post = made_and_failed
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0 and len(batches_of(served)) == 1


@pytest.mark.parametrize("budget", [None, {"budget_usd": 1.0, "price": Price(10.0, 50.0)}])
def test_samples_of_a_picture_that_is_gone_are_left_out_of_their_batch(budget: Any, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    (work.root / "pictures" / "20.png").unlink()
    counts, stop = work.ask(served.base_url, calls_per_batch=10, budget=budget)
    assert stop.code == 0 and counts == {"kept": NUM_PICTURES - 1, "pending": 1}
    assert work.limiter.in_flight == 0


def test_batches_that_cannot_be_asked_for_stop_the_job_and_stay_with_the_server(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    served.batches.get = lambda *_: (503, {"error": {"message": "away"}})
    started = time.monotonic()
    _, stop = work.ask(served.base_url, calls_per_batch=2, max_attempts=1)  # more than there are slots
    assert stop.code == RESUMABLE and "no Batch API now" in stop.reason and time.monotonic() - started < 60
    assert num_with_server(work.root) and work.limiter.in_flight == 0


def test_a_batch_that_the_server_no_longer_knows_says_what_to_remove(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(lambda request, n: ANSWER)
    ask_until_killed(work, served, monkeypatch, "state")
    served.batches._batches.clear()
    _, stop = work.ask(served.base_url, calls_per_batch=15, form="json_schema")
    assert stop.code == BAD_INPUT and "does not know batch" in stop.reason
    assert str(batch_folder(work.root)) in stop.reason


def test_an_answer_that_is_none_is_pending(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (200, {"choices": [{}]}, {}) if n in (5, 9) else ANSWER)
    counts, stop = work.ask(served.base_url, calls_per_batch=50)
    assert counts == {"kept": NUM_PICTURES - 2, "pending": 2} and stop.code == 0
    assert work.usage.calls == NUM_PICTURES


def test_a_server_that_counts_no_tokens_costs_all_the_same(work: Work, serve: Any) -> None:
    silent = {name: value for name, value in ANSWER[1].items() if name != "usage"}
    served = serve(lambda request, n: (200, silent, {}))
    work.ask(served.base_url, calls_per_batch=50, budget={"price": Price(1.0, 1.0)})
    assert work.usage.usd > NUM_PICTURES * 600 / 1e6


def test_what_was_paid_is_reckoned_at_the_price_of_its_day(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url, budget={"budget_usd": 0.02, "price": Price(10.0, 50.0)})
    spent = work.usage.usd
    assert 0.02 <= spent < 0.03
    _, stop = work.ask(served.base_url, calls_per_batch=15, budget={"budget_usd": 0.02, "price": Price(5.0, 25.0)})
    assert stop.code == RESUMABLE and work.usage.usd == spent
