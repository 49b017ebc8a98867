"""The actor that asks, without Ray: what servers do to it, what it writes, when it stops."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.asking import log_file, patience
from mme5core.asking.answer_log import ANSWERED, REJECTED, Entry
from mme5core.asking.known_form import remembered_form
from mme5core.asking.log_file import LogFile
from mme5core.asking.patience import REJECTED_IN_A_ROW, USELESS_AFTER_A_ROW, USELESS_IN_A_ROW
from mme5core.asking.pricing import Price
from mme5core.corpus.picture_filters import FilterSettings, PictureKey
from mme5core.errors import BAD_INPUT, FAILED, RESUMABLE
from mme5core.images import BadImage
from mme5core.ownership import Owner
from mme5core.readers import read_rows
from mme5core.storage import locate
from mme5core.synthesis.question import Synthesis
from mme5core.types import Rejected
from tests.core.asking.server import ANSWER, GOOD, NUM_PICTURES, Reply, Work, completion, write_pictures
from tests.stores import below, put


def test_every_answer_is_in_the_log_with_what_it_took(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    counts, stop = work.ask(served.base_url, budget={"price": Price(10.0, 50.0)})
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0
    assert (work.num_done, work.usage.calls) == (NUM_PICTURES, NUM_PICTURES)
    assert work.usage.prompt_tokens == 100 * NUM_PICTURES
    entry = work.entries()[7]
    assert entry and entry.answer["usd"] == pytest.approx(0.002) and entry.answer["mode"] == "json_schema"
    assert len({request["seed"] for request in served.requests}) == NUM_PICTURES
    assert "response_format" in served.requests[0] and served.requests[0]["model"] == "m"


@pytest.mark.parametrize(
    ("reply", "key", "message"),
    [
        ((401, {"error": {"message": "no"}}, {}), None, "wants a key, and OPENAI_API_KEY is not set (401)"),
        ((401, {"error": {"message": "no"}}, {}), "sk-secret", "refused the key in OPENAI_API_KEY (401)"),
        ((404, {"error": {"message": "no"}}, {}), None, "knows no model 'm', or no chat completions (404"),
        ((200, "<html>Welcome</html>", {}), None, "answers, but not with chat completions"),
    ],
)
def test_what_no_request_can_mend_stops_at_once(
    reply: Reply, key: str | None, message: str, work: Work, serve: Any
) -> None:
    served = serve(lambda request, n: reply)
    counts, stop = work.ask(served.base_url, key=key)
    assert stop.code == BAD_INPUT and message in stop.reason and "secret" not in stop.reason
    assert counts == {"pending": NUM_PICTURES} and len(served.requests) <= 8
    assert work.statuses() == {None: NUM_PICTURES}


@pytest.mark.parametrize(
    "reply",
    [
        (402, {"error": {"message": "Insufficient Balance"}}, {}),
        (429, {"error": {"message": "no", "code": "insufficient_quota"}}, {"retry-after": "60"}),
        (400, {"error": {"message": "no", "code": "billing_hard_limit_reached"}}, {}),
    ],
)
def test_an_account_without_money_stops_the_job_at_once_and_the_next_run_goes_on(
    reply: Reply, work: Work, serve: Any
) -> None:
    served = serve(lambda request, n: ANSWER if n <= 5 else reply)
    counts, stop = work.ask(served.base_url)
    assert stop.code == RESUMABLE and f"no money left ({reply[0]}) at {served.base_url}" in stop.reason
    assert counts == {"kept": 5, "pending": NUM_PICTURES - 5} and len(served.requests) <= 5 + 8
    served.reply = lambda request, n: ANSWER
    assert work.ask(served.base_url)[0] == {"kept": NUM_PICTURES - 5}


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of the log whenever it is synced."""
    fsync, sizes = os.fsync, list[int]()

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr("mme5core.asking.answer_log.os.fsync", noted)
    return sizes


def test_answers_are_on_the_disk_long_before_their_file_is_done(
    work: Work, serve: Any, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "SYNC_EVERY_S", 0.02)

    def slowly(request: dict[str, Any], n: int) -> Reply:
        time.sleep(0.02)
        return ANSWER

    served = serve(slowly)
    work.ask(served.base_url)
    (file,) = work.answers.iterdir()
    assert len(synced) >= 3 and 0 < synced[0] < synced[1] < file.stat().st_size == synced[-1]


def test_a_disk_that_does_not_take_the_answers_stops_the_job(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "SYNC_EVERY_S", 0.02)

    def full(descriptor: int) -> None:
        os.close(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(log_file, "sync", full)

    def slowly(request: dict[str, Any], n: int) -> Reply:
        time.sleep(0.05)
        return ANSWER

    served = serve(slowly)
    _, stop = work.ask(served.base_url)
    assert stop.code == FAILED and stop.reason == f"{work.answers}: Input/output error"
    assert len(served.requests) < NUM_PICTURES


def test_a_server_that_rejects_everything_stops_early_and_nothing_is_refused_for_it(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (400, {"error": {"message": "temperature is not supported"}}, {}))
    counts, stop = work.ask(served.base_url)
    assert stop.code == BAD_INPUT
    assert "rejects every request" in stop.reason and "temperature is not supported" in stop.reason
    assert counts == {"pending": NUM_PICTURES} and work.statuses() == {None: NUM_PICTURES}
    # Each in three forms, until it is clear; and all of it was paid for.
    assert len(served.requests) <= 3 * (REJECTED_IN_A_ROW + 4)
    assert work.usage.calls >= 3 * REJECTED_IN_A_ROW


def test_pictures_that_the_server_rejects_are_refused_and_the_others_kept(work: Work, serve: Any) -> None:
    bad = {0, 1, 2, 20}
    seeds = [row["id"] for row in work.plan.rows(0)]

    def reply(request: dict[str, Any], n: int) -> Reply:
        from mme5core.synthesis.plan import PlannedSample

        of = next(i for i, name in enumerate(seeds) if PlannedSample(name, "", "", "").seed == request["seed"])
        return (400, {"error": {"message": "image too small"}}, {}) if of in bad else ANSWER

    counts, stop = work.ask(serve(reply).base_url)
    assert stop.code == 0 and counts["kept"] == NUM_PICTURES - len(bad)
    # Those before the first answer were held back until there was one.
    assert work.statuses() == {ANSWERED: NUM_PICTURES - len(bad), REJECTED: len(bad)}


@pytest.mark.parametrize(
    ("refused", "mode"), [(["json_schema"], "json_object"), (["json_schema", "json_object"], "plain")]
)
def test_a_server_without_schemas_is_asked_in_a_form_that_it_takes(
    refused: list[str], mode: str, work: Work, serve: Any
) -> None:
    def reply(request: dict[str, Any], n: int) -> Reply:
        form = request.get("response_format", {}).get("type")
        return (400, {"error": {"message": f"{form} is not supported"}}, {}) if form in refused else ANSWER

    served = serve(reply)
    counts, _ = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES}
    assert len(served.requests) == NUM_PICTURES + len(refused)  # found out once
    entry = work.entries()[5]
    assert entry and entry.answer["mode"] == mode
    assert remembered_form(work.root, served.base_url, "m") == (mode, "max_tokens")
    assert remembered_form(work.root, "http://elsewhere/v1", "m") == (None, None)
    last = served.requests[-1]["messages"][1]["content"][0]["text"]
    assert "Answer with one JSON object of this form" in last


def test_a_server_that_never_answers_is_one_line_and_code_3(work: Work, serve: Any) -> None:
    import time

    def reply(request: dict[str, Any], n: int) -> Reply:
        time.sleep(1.5)
        return ANSWER

    counts, stop = work.ask(serve(reply).base_url, timeout_s=0.2, max_attempts=1)
    assert stop.code == RESUMABLE and "no answer from the teacher in 0.2 s" in stop.reason
    assert counts["pending"] == NUM_PICTURES and work.usage.calls >= 3


def test_a_server_that_is_not_there_is_one_line_with_its_address_and_code_3(work: Work) -> None:
    counts, stop = work.ask("http://127.0.0.1:9/v1", max_attempts=1)
    assert stop.code == RESUMABLE and "cannot reach the teacher" in stop.reason and "127.0.0.1:9" in stop.reason
    assert counts == {"pending": NUM_PICTURES}


def test_passing_failures_are_tried_again_and_counted(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (503, {}, {}) if n % 3 == 0 else ANSWER)
    counts, stop = work.ask(served.base_url, max_attempts=6)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0
    assert work.usage.calls == len(served.requests) > NUM_PICTURES


def test_a_budget_of_calls_is_kept_and_a_budget_of_none_asks_nothing(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    counts, stop = work.ask(served.base_url, budget={"budget_calls": 0})
    assert stop.code == RESUMABLE and "budget" in stop.reason and not served.requests
    counts, stop = work.ask(served.base_url, budget={"budget_calls": 10})
    assert stop.code == RESUMABLE and len(served.requests) == 10 and counts["kept"] == 10


def test_what_was_asked_before_to_the_letter_comes_from_the_cache(work: Work, serve: Any, tmp_path: Path) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url)
    cache = work.answers.rename(tmp_path / "cache")
    work.answers.mkdir()
    counts, _ = work.ask(served.base_url, cache=str(cache))
    assert counts == {"kept": NUM_PICTURES} and len(served.requests) == NUM_PICTURES
    assert work.usage.calls == 0  # nothing was paid
    shutil.rmtree(work.answers)
    work.answers.mkdir()
    work.ask(served.base_url, cache=str(cache), temperature=0.5)
    assert len(served.requests) == 2 * NUM_PICTURES  # other requests


def test_samples_of_a_picture_that_is_gone_wait_until_it_is_back(work: Work, serve: Any) -> None:
    file = work.root / "pictures" / "03.png"
    data = file.read_bytes()
    file.unlink()
    served = serve(lambda request, n: ANSWER)
    counts, stop = work.ask(served.base_url)
    assert stop.code == 0 and counts == {"kept": NUM_PICTURES - 1, "pending": 1}
    file.write_bytes(data)
    assert work.ask(served.base_url)[0] == {"kept": 1} and len(served.requests) == NUM_PICTURES


def test_samples_of_a_picture_that_is_gone_are_refused_where_the_user_wants_it(work: Work, serve: Any) -> None:
    (work.root / "pictures" / "03.png").unlink()
    counts, _ = work.ask(serve(lambda request, n: ANSWER).base_url, refuses_away=True)
    assert counts == {"kept": NUM_PICTURES - 1, "refused": 1}


def test_formats_that_servers_do_not_take_are_sent_as_jpeg(tmp_path: Path) -> None:
    import io

    from mme5core.asking.request import sendable

    for kind, as_it_is in (
        ("PNG", True),
        ("JPEG", True),
        ("WEBP", True),
        ("GIF", False),
        ("BMP", False),
        ("TIFF", False),
    ):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9), (200, 10, 10)).save(buffer, kind)
        sent = sendable(buffer.getvalue())
        assert (sent == buffer.getvalue()) == as_it_is
        assert as_it_is or sent.startswith(b"\xff\xd8\xff")


def test_a_form_that_an_earlier_run_found_out_is_not_found_out_again(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url, form="plain")
    assert len(served.requests) == NUM_PICTURES and not any("response_format" in r for r in served.requests)


def test_a_worker_that_died_over_a_file_leaves_its_answers_to_the_next(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url, budget={"budget_calls": 13})
    counts, _ = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES - 13} and len(served.requests) == NUM_PICTURES


def test_tokens_that_a_server_does_not_count_are_estimated_and_a_budget_in_money_ends(work: Work, serve: Any) -> None:
    silent = {name: value for name, value in completion(json.dumps(GOOD)).items() if name != "usage"}
    served = serve(lambda request, n: (200, silent, {}))
    _, stop = work.ask(served.base_url, budget={"budget_usd": 0.02, "price": Price(1.0, 1.0)})
    used = work.usage
    per_call = used.tokens / used.num_answered
    # A prompt of some 2,000 characters, a picture of one tile (255 tokens) and a short answer.
    assert 600 < per_call < 1_500
    assert stop.code == RESUMABLE and 0.02 <= used.tokens / 1e6 < 0.02 + 5 * per_call / 1e6


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_pictures_in_an_object_store_are_shown_to_the_teacher(
    kind: str, bucket: str, tmp_path: Path, serve: Any
) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    wanted = {file.read_bytes() for file in pictures.iterdir()}
    shard = Path(pictures)
    if kind == "tar":
        shard = tmp_path / "00000.tar"
        with tarfile.open(shard, "w") as tar:
            for file in sorted(pictures.iterdir()):
                tar.add(file, file.name)
    elif kind == "parquet":
        shard = tmp_path / "x.parquet"
        rows = [{"id": file.stem, "image": file.read_bytes()} for file in sorted(pictures.iterdir())]
        pq.write_table(pa.Table.from_pylist(rows), shard, row_group_size=10)
    for file in [shard] if shard.is_file() else sorted(shard.iterdir()):
        put(below(bucket, f"{kind}/{file.relative_to(tmp_path)}"), file.read_bytes())
    work = Work(tmp_path, locate(below(bucket, f"{kind}/{shard.name}")))
    served = serve(lambda request, n: ANSWER)
    counts, stop = work.ask(served.base_url)
    assert (counts, stop.code) == ({"kept": NUM_PICTURES}, 0)
    urls = [request["messages"][1]["content"][1]["image_url"]["url"] for request in served.requests]
    assert {base64.b64decode(url.partition("base64,")[2]) for url in urls} == wanted


def test_a_server_that_fails_every_call_is_given_up_and_named(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (503, {}, {}))
    _, stop = work.ask(served.base_url, max_attempts=1)
    assert stop.code == RESUMABLE and f"503 from the teacher at {served.base_url}" in stop.reason
    assert len(served.requests) <= 8 and work.usage.calls == len(served.requests)


def test_a_server_that_fails_every_call_after_a_while_is_given_up_too(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER if n <= 10 else (503, {}, {}))
    counts, stop = work.ask(served.base_url, max_attempts=1)
    # Four in flight: three may fail before the last answer comes, then four in a row, beside three more.
    assert stop.code == RESUMABLE and counts["kept"] == 10 and len(served.requests) <= 10 + 3 + 4 + 3


def test_calls_that_reached_nobody_cost_no_budget(work: Work) -> None:
    work.ask("http://127.0.0.1:9/v1", max_attempts=2)
    assert work.usage.calls == 0 == work.limiter.used.calls


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((400, {"error": {"message": "credit balance is too low"}}, {}), "credit balance is too low"),
        ((422, {"error": {"message": "no more of these"}}, {}), "422"),
    ],
)
def test_a_server_that_refuses_all_from_some_time_on_refuses_no_sample(
    reply: Reply, message: str, work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme5core.asking.patience.REJECTED_AFTER_AN_ANSWER", 20)

    def late(request: dict[str, Any], n: int) -> Reply:
        if n > 5:
            time.sleep(0.2)  # one that came before the last answer would count as refused
        return ANSWER if n <= 5 else reply

    served = serve(late)
    _, stop = work.ask(served.base_url)
    assert stop.code == BAD_INPUT and message in stop.reason
    assert work.statuses() == {ANSWERED: 5, None: NUM_PICTURES - 5}
    assert work.usage.calls == len(served.requests) == work.limiter.used.calls


def test_rejections_at_the_end_are_written_and_not_paid_again(work: Work, serve: Any, synced: list[int]) -> None:
    served = serve(lambda request, n: ANSWER if n <= 35 else (400, {"error": {"message": "too small"}}, {}))
    counts, _ = work.ask(served.base_url)
    assert counts == {"kept": 35, "refused": 5} and work.statuses() == {ANSWERED: 35, REJECTED: 5}
    (file,) = work.answers.iterdir()
    assert file.stat().st_size in synced
    work.ask(served.base_url)
    assert len(served.requests) == NUM_PICTURES


@pytest.mark.parametrize(
    "odd",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        [{"type": "thinking", "thinking": "well"}, {"type": "text", "text": json.dumps(GOOD, indent=1)}],
        json.dumps(GOOD | {"draft": "\ud83d"}),
        "I cannot help \ud83d with that",
    ],
)
def test_an_odd_answer_harms_nobody_else(odd: Any, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (200, completion(odd), {}) if n == 7 else ANSWER)
    counts, stop = work.ask(served.base_url)
    assert stop.code == 0 and counts["kept"] >= NUM_PICTURES - 1 and counts.total() == NUM_PICTURES
    (answer,) = [entry.answer for entry in work.entries() if entry and odd_one(entry.answer)]
    answer["text"].encode()  # as Parquet will


def odd_one(answer: dict[str, Any]) -> bool:
    return bool(answer["text"] != json.dumps(GOOD))


def test_tokens_that_are_no_integers_and_an_answer_without_choices_end_no_job(work: Work, serve: Any) -> None:
    odd = completion(json.dumps(GOOD)) | {"usage": {"prompt_tokens": 100.0, "completion_tokens": 20.0}}
    served = serve(lambda request, n: (200, odd, {}) if n == 3 else (200, {"error": "x"}, {}) if n == 9 else ANSWER)
    counts, stop = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0 and work.usage.prompt_tokens == 100 * NUM_PICTURES


def test_a_filter_takes_no_picture_of_which_nothing_is_known(tmp_path: Path) -> None:
    (row, *_) = read_rows(write_pictures(tmp_path / "pictures"))
    for name, filters in (
        ("similarity", FilterSettings(min_similarity=0.2)),
        ("nsfw", FilterSettings(nsfw=["UNLIKELY"])),
        ("punsafe", FilterSettings(max_punsafe=0.5)),
    ):
        with pytest.raises(BadImage, match=f"filtered_{name}"):
            PictureKey(filters)(row)
    PictureKey(FilterSettings())(row)


CUT_OFF: Reply = (200, completion("", "length"), {})


def test_a_teacher_whose_answers_are_of_no_use_is_not_paid_to_the_end(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "USELESS_IN_A_ROW", 32)
    served = serve(lambda request, n: CUT_OFF)
    counts, stop = work.ask(served.base_url)
    assert stop.code == BAD_INPUT and "none could be kept (cut_off 32; the last: the answer ended" in stop.reason
    assert 32 <= counts["refused"] < 32 + 4 and counts["pending"] > 0
    assert len(served.requests) == counts["refused"] == work.num_done


def test_one_answer_of_use_shows_that_others_may_come(work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(lambda request, n: ANSWER if n == 3 else CUT_OFF)
    monkeypatch.setattr(patience, "USELESS_IN_A_ROW", 32)
    counts, stop = work.ask(served.base_url)
    assert counts == {"kept": 1, "refused": NUM_PICTURES - 1} and stop.code == 0
    assert USELESS_AFTER_A_ROW > USELESS_IN_A_ROW


def test_a_model_that_wants_its_limit_by_another_name_gets_it(work: Work, serve: Any) -> None:
    def reply(request: dict[str, Any], n: int) -> Reply:
        if "max_tokens" in request:
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
            return 400, {"error": {"message": said, "code": "unsupported_parameter", "param": "max_tokens"}}, {}
        if request.get("response_format", {}).get("type") == "json_schema":
            return 400, {"error": {"message": "no schemas here"}}, {}
        return ANSWER

    served = serve(reply)
    counts, stop = work.ask(served.base_url, max_answer_tokens=77, budget={"budget_calls": 12})
    assert counts["kept"] == 10 and stop.code == RESUMABLE  # two were for finding out
    assert {request.get("max_completion_tokens") for request in served.requests[1:]} == {77}
    form, limit = remembered_form(work.root, served.base_url, "m")
    assert (form, limit) == ("json_object", "max_completion_tokens")
    # What was found out holds for batches too, of which a server would refuse every line.
    counts, stop = work.ask(served.base_url, max_answer_tokens=77, form=form, limit=limit, calls_per_batch=20)
    assert counts == {"kept": NUM_PICTURES - 10} and stop.code == 0 and len(served.requests) == NUM_PICTURES + 2


def test_a_server_that_has_changed_its_mind_about_the_limit_loses_no_sample(work: Work, serve: Any) -> None:
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    refused: Reply = (400, {"error": {"message": said, "code": "unsupported_parameter", "param": "max_tokens"}}, {})
    served = serve(lambda request, n: refused if "max_tokens" in request else ANSWER)
    counts, stop = work.ask(served.base_url, form="json_schema")
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0 and len(served.requests) <= NUM_PICTURES + 4


def test_a_picture_that_is_too_long_for_the_limit_does_not_rename_it(work: Work, serve: Any) -> None:
    too_long: Reply = (400, {"error": {"message": "'max_tokens' or 'max_completion_tokens' is too large: 2048"}}, {})
    served = serve(lambda request, n: too_long if n == 5 else ANSWER)
    counts, _ = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES - 1, "refused": 1}
    assert not any("max_completion_tokens" in request for request in served.requests)


def test_a_sync_that_failed_once_has_failed_for_good(work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve(lambda request, n: ANSWER)
    work.ask(served.base_url, budget={"budget_calls": 1})
    with LogFile(work.plan, work.answers, 0, "w") as file:

        def full(descriptor: int) -> None:
            os.close(descriptor)
            raise OSError(28, "No space left on device")

        async def twice() -> list[str]:
            seen = []
            for number in (1, 2):
                file.write(Entry(number, ANSWERED, 1, 1, 1, 0.0, "-", {}))
                with pytest.raises(OSError, match="No space") as error:
                    await file.sync()
                seen.append(str(error.value))
                monkeypatch.undo()
            return seen

        monkeypatch.setattr(log_file, "sync", full)
        assert len(asyncio.run(twice())) == 2


def test_what_a_model_says_when_it_refuses_is_kept(work: Work, serve: Any) -> None:
    refusal = completion("")
    refusal["choices"][0]["message"] |= {"content": None, "refusal": "I can't help with this picture."}
    served = serve(lambda request, n: (200, refusal, {}) if n == 2 else ANSWER)
    counts, _ = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES - 1, "refused": 1}
    entries = [entry for entry in work.entries() if entry]
    (entry,) = [entry for entry in entries if entry.answer["finish_reason"] == "content_filter"]
    judged = Synthesis(None, 1).verdict(entry.answer, work.plan.rows(0)[entry.number])  # type: ignore[arg-type]
    assert isinstance(judged, Rejected) and (judged.reason, judged.detail) == (
        "refusal",
        "I can't help with this picture.",
    )


def test_a_worker_whose_run_was_replaced_asks_for_nothing_more(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    owner = Owner.take(work.root)
    counts, stop = work.ask(served.base_url, owner="the token of an earlier run")
    assert (stop.code, stop.reason) == (FAILED, "another run of this folder has taken over")
    assert not counts["kept"] and not served.requests
    owner.release()


def test_a_worker_whose_run_is_replaced_while_it_asks_stops(work: Work, serve: Any) -> None:
    owner = Owner.take(work.root)

    def reply(request: Any, n: int) -> Reply:
        owner.release()
        time.sleep(0.5)
        return ANSWER

    served = serve(reply)
    _, stop = work.ask(served.base_url, owner=owner.token)
    assert stop.code == FAILED and len(served.requests) < NUM_PICTURES
