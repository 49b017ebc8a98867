"""The answer wherever a server puts it, and how it ended by whatever name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mme5core.asking.answer import answer_of
from mme5core.asking.finish_reasons import ending_of
from mme5core.asking.json_in_text import holds_json, read_json
from mme5core.errors import RESUMABLE
from tests.core.asking.server import ANSWER, GOOD, NUM_PICTURES, Reply, Work, completion

TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("reasons", "ending"),
    [
        ((None, "", "stop", "STOP", "eos", "end_turn", "FinishReason.STOP", "tool_calls"), "complete"),
        (("length", "max_tokens", "MAX_TOKENS", "model_length", "FinishReason.MAX_TOKENS"), "cut"),
        (("content_filter", "SAFETY", "prohibited_content", "content-filter"), "filtered"),
        (("error", "abort", "insufficient_system_resource", "cancelled", "anything", 7), "unknown"),
    ],
)
def test_an_ending_is_read_from_a_list(reasons: tuple[Any, ...], ending: str) -> None:
    assert {ending_of(reason) for reason in reasons} == {ending}


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": TEXT},
        {"content": "", "reasoning": f"I think so.\n{TEXT}"},
        {"content": " ", "tool_calls": [{"function": {"name": "sample", "arguments": TEXT}}]},
        {"content": "See the call.", "tool_calls": [{"function": {"arguments": TEXT}}]},
        {"content": None, "function_call": {"arguments": TEXT}},
        {"content": None, "parsed": GOOD},
        {"content": GOOD},
        {"content": [{"type": "thinking", "thinking": "{}"}, {"type": "output_text", "text": TEXT}]},
        {"content": [TEXT]},
    ],
)
def test_an_answer_is_taken_from_whatever_field_has_it(message: dict[str, Any]) -> None:
    answer = answer_of({"choices": [{"message": message}]}, "m")
    assert read_json(answer.text)[0] == GOOD


def test_words_in_the_answers_own_field_come_before_thoughts() -> None:
    message = {"content": "I cannot help with that.", "reasoning_content": TEXT}
    assert answer_of({"choices": [{"message": message}]}, "m").text == "I cannot help with that."


@pytest.mark.parametrize(
    "text",
    [
        '<think>The form is {"images": [...]}, so {"a": 2} it is.</think>{"a": 1}',
        'well, the form is {...}.</think>\n{"a": 1}',
        '```json\n{"a": 1}\n```\nI left {placeholders} out.',
        'As {asked}: {"a": 1} and {}',
        '"{\\"a\\": 1}"',
        '[{"a": 1}]',
        '{"a": 1,}',
        'First {"a": 1,} then nothing',
    ],
)
def test_the_object_is_read_out_of_what_surrounds_it(text: str) -> None:
    assert read_json(text) == ({"a": 1}, True)


@pytest.mark.parametrize(
    "text",
    [
        "no braces",
        "{not, json}",
        '{"draft": {"a": 1}, revision: {"b": 2}}',  # an object inside a broken one is not the answer
        '{"draft": {"a": 1}, "revi',
        "[" * 100_000,
        '{"a":' * 100_000,
        "{" * 100_000,
    ],
)
def test_no_object_is_made_of_what_holds_none(text: str) -> None:
    assert not holds_json(text)


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_an_answer_that_the_server_breaks_off_is_asked_for_again_and_paid_for(
    reason: str, work: Work, serve: Any
) -> None:
    broken: Reply = (200, completion(TEXT[:40], reason), {})
    served = serve(lambda request, n: broken if n in (3, 9) else ANSWER)
    counts, stop = work.ask(served.base_url)
    assert counts == {"kept": NUM_PICTURES} and stop.code == 0 and work.usage.calls == NUM_PICTURES + 2


def test_a_server_that_breaks_off_every_answer_stops_the_job_and_nothing_is_refused(work: Work, serve: Any) -> None:
    served = serve(lambda request, n: (200, completion("", "error"), {}))
    counts, stop = work.ask(served.base_url, max_attempts=5)
    assert stop.code == RESUMABLE and "ended the answer with 'error'" in stop.reason
    assert counts == {"pending": NUM_PICTURES} and 64 <= len(served.requests) < 64 + 8
