"""In which form a server is asked: believed when an answer has shown it, and always said in words too."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from mme5core.asking.known_form import remembered_form
from mme5core.asking.settings import BudgetSettings, PriceSettings, ServerSettings
from mme5core.errors import BAD_INPUT, InputError
from tests.core.asking.server import ANSWER, GOOD, NUM_PICTURES, Reply, Served, Work, completion

IN_WORDS = "Answer with one JSON object of this form"
PROSE: Reply = (200, completion("Step 1. The picture shows a square."), {})


def form_of(request: dict[str, Any]) -> str:
    return str(request.get("response_format", {}).get("type", "plain"))


def forms_of(served: Served) -> Counter[str]:
    return Counter(map(form_of, served.requests))


def test_the_form_is_said_in_words_whatever_form_is_asked_for(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: ANSWER)
    for form in ("json_schema", "json_object", "plain"):
        work.ask(served.base_url, form=form, budget={"budget_calls": len(served.requests) + 2})
    texts = [request["messages"][1]["content"][0]["text"] for request in served.requests]
    assert len(texts) >= 3 and all(IN_WORDS in text for text in texts)


@pytest.mark.parametrize(("ignored", "shown"), [(1, "json_object"), (2, "plain")])
def test_a_form_that_is_taken_and_ignored_is_not_believed(ignored: int, shown: str, work: Work, serve: Any) -> None:
    forms = ("json_schema", "json_object", "plain")
    served = serve(lambda request, n: PROSE if form_of(request) in forms[:ignored] else ANSWER)
    counts, stop = work.ask(served.base_url, budget={})
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0
    assert forms_of(served) == dict.fromkeys(forms[:ignored], 1) | {shown: NUM_PICTURES}
    assert remembered_form(work.root, served.base_url, "m").form == shown
    # The answers in the forms that were not believed are paid for too.
    assert work.usage.prompt_tokens == 100 * (NUM_PICTURES + ignored) == work.limiter.used.prompt_tokens


def test_a_teacher_without_json_shows_no_form_and_is_asked_in_all_of_them_a_few_times_only(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme5core.asking.patience.USELESS_IN_A_ROW", 32)
    served = serve(lambda request, n: PROSE)
    counts, stop = work.ask(served.base_url)
    assert stop.code == BAD_INPUT and "not_json" in stop.reason and counts["refused"] >= 32
    assert remembered_form(work.root, served.base_url, "m").form is None
    assert len(served.requests) <= counts["refused"] + 2 * 8 + 4 and work.usage.calls == len(served.requests)


def test_an_answer_that_is_cut_off_tells_nothing_of_the_form(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (200, completion("Well,", "length"), {}) if n <= 2 else ANSWER)
    counts, _ = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES - 2, "refused": 2} and forms_of(served) == {"json_schema": NUM_PICTURES}


def test_a_form_that_is_refused_with_500_is_not_asked_for_again(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme5core.asking.client.FIRST_WAIT_S", 0.01)
    refused: Reply = (500, {"error": {"message": "response_format must be text or json_object"}}, {})
    served = serve(lambda request, n: refused if form_of(request) == "json_schema" else ANSWER)
    counts, stop = work.ask(served.base_url, max_attempts=3)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0
    assert forms_of(served) == {"json_schema": 3, "json_object": NUM_PICTURES}


@pytest.mark.parametrize("form", ["json_schema", "json_object", "plain"])
def test_a_form_that_the_user_sets_is_the_only_one(form: Any, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: PROSE if n == 1 else ANSWER)
    counts, _ = work.ask(served.base_url, set_form=form)
    assert counts == {"kept": NUM_PICTURES - 1, "refused": 1} and forms_of(served) == {form: NUM_PICTURES}
    assert remembered_form(work.root, served.base_url, "m").form == form  # an answer has shown it


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."},
        {"error": "gateway: {\"message\": \"Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'\"}"},
        {
            "error": {
                "message": "BadRequestError: - max_tokens is not supported, use max_completion_tokens",
                "code": "400",
            }
        },
        {"error": {"message": "`max_tokens` is deprecated, send max_completion_tokens", "type": "invalid"}},
    ],
)
def test_a_wrapped_wish_for_the_other_limit_is_understood(body: Any, work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (400, body, {}) if "max_tokens" in request else ANSWER)
    counts, stop = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0 and len(served.requests) == NUM_PICTURES + 1


def test_a_server_that_rejects_the_seed_is_asked_without(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (400, {"error": "seed?"}, {}) if "seed" in request else ANSWER)
    counts, _ = work.ask(served.base_url, omit=["seed", "temperature"], extra={"reasoning_effort": "low"})
    assert counts == {"kept": NUM_PICTURES}
    assert all(r["reasoning_effort"] == "low" and "temperature" not in r for r in served.requests)
    entry = work.entries()[0]
    assert entry and isinstance(entry.answer["seed"], int)  # the plan's


def test_what_is_added_to_a_request_makes_it_another_and_what_is_left_out_does_not(work: Work) -> None:
    from mme5core.asking.request import Request, Sampling

    request = Request("s", "u", [], {}, "w", 7)
    assert request.key("m", Sampling()) == request.key("m", Sampling(omit=("seed",)))
    assert request.key("m", Sampling()) != request.key("m", Sampling(extra={"think": False}))


@pytest.mark.parametrize("name", ["model", "messages", "seed", "response_format", "stream"])
def test_fields_of_ours_cannot_be_set_from_outside(name: str) -> None:
    server = ServerSettings(base_url="http://x/v1", model="m", extra={name: 1})
    with pytest.raises(InputError, match=f"'teacher.extra' cannot set '{name}'"):
        server.check("teacher", PriceSettings(), BudgetSettings())


def test_large_pictures_are_scaled_down_before_they_are_sent() -> None:
    import io

    from PIL import Image

    from mme5core.asking.request import sendable

    buffer = io.BytesIO()
    Image.new("RGB", (400, 100), (9, 9, 9)).save(buffer, "PNG")
    large = buffer.getvalue()
    assert sendable(large, 400) == large == sendable(large)
    assert Image.open(io.BytesIO(sendable(large, 200))).size == (200, 50)


def test_a_server_that_drops_the_text_is_said_once(work: Work, serve: Any) -> None:
    few = completion(json.dumps(GOOD)) | {"usage": {"prompt_tokens": 34, "completion_tokens": 9}}
    counts, _ = work.ask(serve(lambda request, n: (200, few, {})).base_url)
    assert counts == {"kept": NUM_PICTURES}  # it is paid for, and a person decides
    (note,) = work.notes
    assert "counts 34 prompt tokens a call where about" in note and "it may drop the pictures" in note


def test_a_server_that_counts_what_was_expected_is_not_suspected(work: Work, serve: Any) -> None:
    enough = completion(json.dumps(GOOD)) | {"usage": {"prompt_tokens": 900, "completion_tokens": 9}}
    work.ask(serve(lambda request, n: (200, enough, {})).base_url)
    assert work.notes == ()


def test_a_field_that_a_server_rejects_is_said_with_the_way_out(work: Work, serve: Any) -> None:
    rejected: Reply = (422, {"detail": [{"loc": ["body", "seed"], "msg": "seed: extra inputs are not permitted"}]}, {})
    _, stop = work.ask(serve(lambda request, n: rejected).base_url)
    assert stop.code == BAD_INPUT and stop.reason.endswith("teacher.omit=[seed] leaves that field out")


def test_a_failure_before_the_form_is_known_does_not_hide_that_a_form_is_refused(
    work: Work, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mme5core.asking.client.FIRST_WAIT_S", 0.01)

    def reply(request: dict[str, Any], n: int) -> Reply:
        if n == 1:
            return 429, {"error": "busy"}, {"retry-after": "0"}
        return (500, {"error": "broke"}, {}) if form_of(request) == "json_schema" else ANSWER

    served = serve(reply)
    counts, _ = work.ask(served.base_url, max_attempts=1)
    assert counts == {"kept": NUM_PICTURES - 1, "pending": 1}
    assert forms_of(served) == {"json_schema": 2, "json_object": NUM_PICTURES - 1}


def test_one_record_tests_key_and_model_before_batches_go_out_though_the_form_is_set(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (401, {"error": "no"}, {}))
    _, stop = work.ask(served.base_url, set_form="plain", calls_per_batch=20)
    assert stop.code == BAD_INPUT and served.online == 1 and len(served.requests) == 1
    served.reply = lambda request, n: ANSWER
    counts, _ = work.ask(served.base_url, set_form="plain", calls_per_batch=20)
    assert counts == {"kept": NUM_PICTURES} and served.online == 2
