"""Errors of servers in every shape: whose fault they are, what is said of them, and that the key is never said."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mme5core.asking.answer_log import ANSWERED, REJECTED
from mme5core.asking.server_words import BLANK, body_of, error_codes, server_words, status_within, without_key
from mme5core.errors import BAD_INPUT, RESUMABLE
from tests.core.asking.server import ANSWER, NUM_PICTURES, Reply, Work

KEY = "sk-not-a-real-key-0123456789"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "too small", "code": None}}, "too small"),
        ({"error": "needs more memory"}, "needs more memory"),
        ({"detail": "pinned to another model"}, "pinned to another model"),
        ({"detail": [{"loc": ["seed"], "msg": "extra inputs are not permitted"}]}, "extra inputs are not permitted"),
        ([{"error": {"code": 400, "message": "key not valid"}}], "key not valid"),
        ({"message": "not today", "statusCode": 400}, "not today"),
        ({"errors": ["first", "second"]}, "first; second"),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": '{"error": "overloaded"}'}}},
         'Provider returned error; {"error": "overloaded"}'),
        ({"error": {"reason": 7}}, '{"reason": 7}'),
        ("plain words", "plain words"),
        ("<html><head><title>504 Gateway\nTime-out</title></head><body>x</body></html>", "504 Gateway Time-out"),
        ("<p>no <b>entry</b></p>", "no entry"),
        ({}, ""),
        (None, ""),
        (7, ""),
    ],
)  # fmt: skip
def test_a_servers_words_are_read_whatever_the_shape_of_its_body(body: Any, words: str) -> None:
    assert " ".join(server_words(body).split()) == words


def test_words_are_one_line_of_bounded_length() -> None:
    words = server_words({"error": {"message": "a\nb " * 500}})
    assert "\n" not in words and len(words) == 200


def test_a_body_is_json_whatever_its_type_says_and_holds_no_key() -> None:
    assert body_of(b'\xef\xbb\xbf{"a": "x\ny"}', None) == {"a": "x\ny"}
    assert body_of(f'{{"error": "for {KEY}"}}'.encode(), KEY) == {"error": f"for {BLANK}"}
    assert body_of(b"\xff<html>", None) == "\ufffd<html>"


def test_a_stand_in_for_a_key_is_no_secret() -> None:
    assert without_key("none of these", "none") == "none of these"
    assert without_key(f"for {KEY}", f"{KEY}\n") == f"for {BLANK}"


def test_codes_and_statuses_inside_a_body() -> None:
    assert status_within({"error": {"code": "503"}}) == 503 == status_within([{"error": {"code": 503}}])
    assert status_within({"error": {"code": 7}}) is None is status_within({"error": "429"})
    assert error_codes({"error": {"code": None, "type": "insufficient_quota"}}) == ("insufficient_quota",)


@pytest.mark.parametrize(
    ("reply", "code", "line"),
    [
        ((401, {"detail": "expired"}, {}), BAD_INPUT, "; it says: expired"),
        ((403, {"error": "no such project"}, {}), BAD_INPUT, "refused the key in OPENAI_API_KEY (403)"),
        ((403, {"error": "no such project"}, {}), BAD_INPUT, "; it says: no such project"),
        ((404, {"error": "model 'm' not found"}, {}), BAD_INPUT, "; it says: model 'm' not found"),
        ((400, {"error": "context too short"}, {}), BAD_INPUT, "context too short"),
        ((402, {"message": "pay first"}, {}), RESUMABLE, "pay in, then run again; it says: pay first"),
        ((500, {"error": "out of memory"}, {}), RESUMABLE, "run again when it is there; it says: out of memory"),
        ((503, "<title>down for repairs</title>", {}), RESUMABLE, "; it says: down for repairs"),
        ((429, {"error": {"message": "slow down"}}, {"retry-after": "0"}), RESUMABLE, "; it says: slow down"),
        ((200, {"error": {"message": "no upstream"}}, {}), RESUMABLE, "; it says: no upstream"),
        ((200, {"error": {"code": 401, "message": "who are you"}}, {}), BAD_INPUT, "; it says: who are you"),
        ((200, {"message": "hello"}, {}), BAD_INPUT, "not with chat completions"),
    ],
)
def test_a_servers_words_reach_the_line_that_ends_the_job(
    reply: Reply, code: int, line: str, work: Work, serve: Any
) -> None:
    _, stop = work.ask(serve(lambda request, n: reply).base_url, key=KEY, max_attempts=1)
    assert stop.code == code and line in stop.reason and "\n" not in stop.reason


def test_a_servers_words_reach_the_quarantine_and_the_log(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (400, {"detail": "this picture is too dark"}, {}) if n == 5 else ANSWER)
    work.ask(served.base_url)
    (refused,) = [entry for entry in work.entries() if entry and entry.status == REJECTED]
    assert "this picture is too dark" in refused.answer["detail"]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("num_good", [0, 8])
def test_the_key_that_a_server_says_is_blanked_everywhere(
    status: int, num_good: int, work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme5core.asking.client.FIRST_WAIT_S", 0.01)
    bad: Reply = (status, {"error": {"message": f"received API key {KEY}: no"}}, {})
    served = serve(lambda request, n: ANSWER if n <= num_good else bad)
    _, stop = work.ask(served.base_url, key=KEY)
    assert KEY not in stop.reason
    for file in work.root.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_the_key_in_a_batch_is_blanked_too(work: Work, serve: Any) -> None:
    bad: Reply = (400, {"error": {"message": f"received {KEY}"}}, {})
    served = serve(lambda request, n: bad if n % 4 == 0 else ANSWER)
    work.ask(served.base_url, key=KEY, calls_per_batch=20)
    log = b"".join(file.read_bytes() for file in work.answers.iterdir())
    assert KEY.encode() not in log and BLANK.encode() in log


@pytest.mark.parametrize(
    "words", ["flagged by moderation", "blocked by our content policy", "no access to this feature"]
)
def test_a_403_after_an_answer_refuses_its_sample_alone(words: str, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (403, {"error": {"message": words}}, {}) if n in (5, 9) else ANSWER)
    counts, stop = work.ask(served.base_url)
    assert stop.code == 0 and counts == {"kept": NUM_PICTURES - 2, "refused": 2}


def test_a_picture_that_moderation_flags_is_refused_though_it_is_the_first(work: Work, serve: Any) -> None:
    flagged: Reply = (403, {"error": {"message": "your input was flagged"}}, {})
    served = serve(lambda request, n: flagged if n <= 3 else ANSWER)
    counts, stop = work.ask(served.base_url)
    assert stop.code == 0 and counts == {"kept": NUM_PICTURES - 1, "refused": 1}


def test_a_404_after_an_answer_may_pass_and_many_in_a_row_stop_the_job(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme5core.asking.client.FIRST_WAIT_S", 0.01)
    gone: Reply = (404, {"error": {"message": "resource not found"}}, {})
    served = serve(lambda request, n: gone if n == 9 else ANSWER)
    assert work.ask(served.base_url, budget={"budget_calls": 20})[0]["kept"] == 19
    served.reply = lambda request, n: gone
    counts, stop = work.ask(served.base_url, max_attempts=1)
    assert stop.code == RESUMABLE and "404 from the teacher" in stop.reason and "resource not found" in stop.reason
    assert counts == {"pending": NUM_PICTURES - 19} and work.statuses()[ANSWERED] == 19


def test_403_for_all_after_an_answer_stops_the_job_and_refuses_nothing(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme5core.asking.patience.REJECTED_AFTER_AN_ANSWER", 20)
    served = serve(lambda request, n: ANSWER if n == 1 else (403, {"error": {"message": "revoked"}}, {}))
    _, stop = work.ask(served.base_url)
    assert stop.code == BAD_INPUT and "rejects every request (403" in stop.reason and "revoked" in stop.reason
    assert work.statuses() == {ANSWERED: 1, None: NUM_PICTURES - 1}


@pytest.mark.parametrize("error", [{"code": 429, "message": "limited upstream"}, {"message": "busy"}, "busy"])
def test_a_first_200_with_an_error_is_tried_again(error: Any, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (200, {"error": error}, {}) if n == 1 else ANSWER)
    counts, stop = work.ask(served.base_url, max_attempts=3)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0 and len(served.requests) == NUM_PICTURES + 1


def test_a_completion_of_another_content_type_is_one(work: Work, serve: Any) -> None:
    import json

    served = serve(lambda request, n: (200, json.dumps(ANSWER[1]), {}))  # sent as text/html
    assert work.ask(served.base_url)[0] == {"kept": NUM_PICTURES}


@pytest.fixture
def odd_replies() -> Iterator[Any]:
    """A server that answers with these bytes, one for each connection."""
    sockets = []

    def start(*replies: bytes) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)

        def serve() -> None:
            for reply in replies:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(65536)
                    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                    left = length - len(head.split(b"\r\n\r\n", 1)[1])
                    while left > 0:
                        left -= len(connection.recv(65536))
                    connection.sendall(reply)

        Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/v1"

    yield start
    for listening in sockets:
        listening.close()


@pytest.mark.parametrize(
    "reply",
    [
        b"220 mail ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    ],
)
def test_a_reply_that_is_no_http_is_one_failed_call(reply: bytes, work: Work, odd_replies: Any, tmp_path: Path) -> None:
    _, stop = work.ask(odd_replies(*[reply] * 20), max_attempts=1, key=KEY)
    assert stop.code == RESUMABLE and "no HTTP from the teacher" in stop.reason and "\n" not in stop.reason
    assert work.usage.calls == 3
