"""The demo teacher over HTTP, asked by the real client: what it knows, what it writes, how it can fail."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from mme5core.asking.answer import Answer
from mme5core.asking.client import Client
from mme5core.asking.failures import RequestRejected, ServerMisconfigured, ServerUnavailable
from mme5core.asking.permits import Gate, OpenGate
from mme5core.asking.request import SCHEMA, Request
from mme5core.demo.teacher import MODEL, DemoTeacher, Entry, Faults, Knowledge, write_answer
from mme5core.images import load_rgb, to_jpeg
from mme5core.synthesis.answer import Parsed, parse_answer
from mme5core.synthesis.plan import COMBINATIONS, PlannedSample
from mme5core.synthesis.prompts import build_prompt
from mme5core.synthesis.question import build_request
from mme5core.types import Content, Rejected, Sample

ALL = sorted({combination for found in COMBINATIONS.values() for combination in found})
Ask = Callable[..., tuple[Answer, Sample | Rejected]]


def plan_for(combination: str, keys: list[str], *, task: str = "retrieval", language: str = "it") -> PlannedSample:
    """A planned sample of two hard negatives over the first pictures of `keys`."""
    query, document = combination.split("2")
    pictures = iter(keys)
    query_image = next(pictures) if "I" in query else None
    positive_image = next(pictures) if "I" in document else None
    negatives = (next(pictures), next(pictures)) if "I" in document else ()
    return PlannedSample("s", task, combination, language, query_image, positive_image, negatives)


def ask(
    base_url: str,
    plan: PlannedSample,
    data_by_key: dict[str, bytes],
    *,
    max_attempts: int = 1,
    gate: Gate | None = None,
) -> tuple[Answer, Sample | Rejected]:
    """What the client gets from the server, and what becomes of it."""
    images = {key: data_by_key[key] for key in plan.image_ids}

    async def once() -> Answer:
        teacher = Client(
            base_url, MODEL, role="teacher", api_key=None, max_attempts=max_attempts, gate=gate, form=SCHEMA
        )
        try:
            return await teacher.ask(build_request(plan, images, num_negatives=2))
        finally:
            await teacher.close()

    answer = asyncio.run(once())
    found = parse_answer(answer.text, answer.finish_reason, plan, images, num_negatives=2)
    return answer, found if isinstance(found, Rejected) else found.sample


def texts_of(sample: Sample) -> list[str]:
    return [content.text for content in (sample.query, sample.positive, *sample.negatives) if content.text]


@pytest.fixture
def keys(knowledge: Knowledge) -> list[str]:
    """The ten mammals."""
    return [entry.key for entry in knowledge.entries if entry.subgroup == "animal-mammal"]


@pytest.mark.parametrize("combination", ALL)
def test_every_combination_becomes_a_sample_in_the_language_asked_for(
    combination: str, knowledge: Knowledge, keys: list[str], data_by_key: dict[str, bytes]
) -> None:
    plan = plan_for(combination, keys)
    with DemoTeacher(knowledge) as server:
        answer, sample = ask(server.base_url, plan, data_by_key)
    assert isinstance(sample, Sample), sample
    assert (sample.modality_combination, answer.calls, answer.finish_reason) == (combination, 1, "stop")
    entries = {entry.key: entry for entry in knowledge.entries}
    about = entries[plan.positive_image or plan.query_image or ""]
    siblings = {entry.names["it"] for entry in knowledge.entries if entry.subgroup == "animal-mammal"}
    if "T" in plan.document_modality:
        assert sample.positive.text == about.names["it"]
        if plan.negative_images:
            assert [n.text for n in sample.negatives] == [entries[key].names["it"] for key in plan.negative_images]
        assert {n.text for n in sample.negatives} <= siblings - {about.names["it"]}
    if plan.positive_image:
        assert sample.positive.image == data_by_key[plan.positive_image]
        assert [n.image for n in sample.negatives] == [data_by_key[key] for key in plan.negative_images]
    if plan.query_image:
        assert sample.query.image == data_by_key[plan.query_image]
    if "T" in plan.query_modality:
        shown = entries[plan.query_image or plan.positive_image or ""]
        italian = {shown.names["it"], *shown.keywords["it"]}
        assert set((sample.query.text or "").split(", ")) <= italian | {", ".join(italian)}


def test_there_are_seven_combinations() -> None:
    assert len(ALL) == 7


@pytest.mark.parametrize("task", ["classification", "vqa"])
def test_other_tasks_become_samples_with_hard_negatives_of_the_same_subgroup(
    task: str, knowledge: Knowledge, keys: list[str], data_by_key: dict[str, bytes]
) -> None:
    plan = plan_for("IT2T", keys, task=task, language="ko")
    with DemoTeacher(knowledge) as server:
        _, sample = ask(server.base_url, plan, data_by_key)
    assert isinstance(sample, Sample)
    siblings = {entry.names["ko"] for entry in knowledge.entries if entry.subgroup == "animal-mammal"}
    assert {n.text for n in sample.negatives} < siblings and sample.positive.text in siblings
    assert (sample.query.text or "").endswith("?") == (task == "vqa")


def test_a_picture_is_known_by_its_pixels_after_it_was_encoded_again(
    knowledge: Knowledge, data_by_key: dict[str, bytes]
) -> None:
    for key, data in data_by_key.items():
        picture = load_rgb(data)
        for altered in (
            load_rgb(to_jpeg(picture, quality=30)),
            picture.resize((90, 90), Image.Resampling.BICUBIC),
            picture.convert("RGBA"),
        ):
            assert knowledge.recognise(altered).key == key


def test_siblings_are_of_the_subgroup_and_named_in_the_language_by_another_name() -> None:
    def entry(key: str, subgroup: str, **names: str) -> Entry:
        return Entry(key, subgroup, {"en": key} | names, {})

    fruits = [entry(f"f{n}", "fruit", it=f"frutto {n}") for n in range(5)]
    fruits += [entry("double", "fruit", it="frutto 0"), entry("unnamed", "fruit")]
    flags = [entry("g0", "flag", it="bandiera 0"), entry("g1", "flag", it="bandiera 1")]
    pictures = [Image.new("RGB", (16, 16), (n, 0, 0)) for n in range(9)]
    knowledge = Knowledge(fruits + flags, pictures)
    assert [e.key for e in knowledge.siblings(fruits[0], "it")] == ["f1", "f2", "f3", "f4"]
    # Too few of its own kind: others of every kind.
    expected = ["f0", "f1", "f2", "f3", "f4", "double", "g1"]
    assert [e.key for e in knowledge.siblings(flags[0], "it")] == expected


@pytest.mark.parametrize("fault", ["rate_429", "rate_500"])
def test_a_request_that_fails_is_tried_again_and_counted(
    fault: str, knowledge: Knowledge, keys: list[str], data_by_key: dict[str, bytes]
) -> None:
    with DemoTeacher(knowledge, Faults(**{fault: 1.0})) as server:

        class HealsAfterOne(OpenGate):
            asked = 0

            async def enter(self) -> bool:
                self.asked += 1
                if self.asked == 2:
                    server.faults = Faults()
                return True

        gate = HealsAfterOne()
        answer, sample = ask(server.base_url, plan_for("I2T", keys), data_by_key, max_attempts=3, gate=gate)
        assert isinstance(sample, Sample)
        assert answer.calls == server.served.requests == gate.asked == 2


def test_a_request_that_keeps_failing_is_left_for_the_next_run(
    knowledge: Knowledge, keys: list[str], data_by_key: dict[str, bytes]
) -> None:
    with DemoTeacher(knowledge, Faults(rate_429=1.0)) as server:
        with pytest.raises(ServerUnavailable, match="429") as caught:
            ask(server.base_url, plan_for("I2T", keys), data_by_key, max_attempts=2)
        assert caught.value.calls == server.served.requests == 2 and not caught.value.unreachable


@pytest.mark.parametrize(("fault", "reason"), [("rate_cut_off", "cut_off"), ("rate_malformed", "not_json")])
def test_a_bad_answer_is_refused_with_its_reason(
    fault: str, reason: str, knowledge: Knowledge, keys: list[str], data_by_key: dict[str, bytes]
) -> None:
    with DemoTeacher(knowledge, Faults(**{fault: 1.0})) as server:
        answer, rejected = ask(server.base_url, plan_for("I2T", keys), data_by_key)
    assert isinstance(rejected, Rejected) and rejected.reason == reason
    # It was answered, and so it was paid for.
    assert answer.calls == 1 and answer.completion_tokens > 0


@pytest.mark.parametrize("combination", [c for c in ALL if "T" in c])
def test_a_wrong_draft_never_reaches_the_sample(
    combination: str, knowledge: Knowledge, keys: list[str], data_by_key: dict[str, bytes]
) -> None:
    plan = plan_for(combination, keys)
    with DemoTeacher(knowledge, Faults(rate_wrong_draft=1.0)) as server:
        answer, sample = ask(server.base_url, plan, data_by_key)
        assert "wrong " in json.dumps(json.loads(answer.text)["draft"])
        assert isinstance(sample, Sample) and not any("wrong" in text for text in texts_of(sample))
        server.faults = Faults(rate_wrong_revision=1.0)
        _, sample = ask(server.base_url, plan, data_by_key)
        assert isinstance(sample, Sample) and any("wrong" in text for text in texts_of(sample))


def test_the_same_question_gets_the_same_answer_and_another_language_another(
    knowledge: Knowledge, keys: list[str], data_by_key: dict[str, bytes]
) -> None:
    def answered(language: str) -> Content:
        _, sample = ask(server.base_url, plan_for("I2T", keys, language=language), data_by_key)
        assert isinstance(sample, Sample)
        return sample.positive

    with DemoTeacher(knowledge) as server:
        assert answered("it") == answered("it") != answered("ru")


def test_a_path_that_the_server_does_not_have_is_a_wrong_setting(
    knowledge: Knowledge, keys: list[str], data_by_key: dict[str, bytes]
) -> None:
    # The usual slip: the address without its /v1.
    with DemoTeacher(knowledge) as server, pytest.raises(ServerMisconfigured):
        ask(server.base_url.removesuffix("/v1"), plan_for("I2T", keys), data_by_key, max_attempts=3)


def test_an_address_where_nobody_listens_is_unreachable(keys: list[str], data_by_key: dict[str, bytes]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it meanwhile
        with pytest.raises(ServerUnavailable) as caught:
            ask(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", plan_for("I2T", keys), data_by_key)
    assert caught.value.unreachable and caught.value.calls == 0  # it was never made


@pytest.mark.parametrize("pictures", [[], [b"no picture"], [b"\x89PNG\r\n\x1a\n and no more"]])
def test_a_question_that_cannot_be_answered_is_rejected_for_good(
    pictures: list[bytes], knowledge: Knowledge, keys: list[str]
) -> None:
    system, user = build_prompt(plan_for("I2T", keys), num_negatives=2)

    async def once(base_url: str) -> Answer:
        teacher = Client(base_url, MODEL, role="teacher", api_key=None, max_attempts=1)
        try:
            return await teacher.ask(Request(system, user, pictures, {"type": "object"}, "", 0))
        finally:
            await teacher.close()

    with DemoTeacher(knowledge) as server, pytest.raises(RequestRejected, match="400"):
        asyncio.run(once(server.base_url))


@pytest.mark.parametrize(
    ("task", "combination"), [(t, c) for t, cs in COMBINATIONS.items() if t != "fused" for c in cs]
)
@pytest.mark.parametrize("language", ["it", "zh", "hi"])
def test_every_answer_passes_the_checks_and_no_query_is_its_positive(
    task: str, combination: str, language: str, knowledge: Knowledge
) -> None:
    entries = {entry.key: entry for entry in knowledge.entries}

    class ByKey(Knowledge):
        """Pictures are their keys here."""

        def __init__(self) -> None:
            self.__dict__.update(knowledge.__dict__)

        def recognise(self, picture: Any) -> Entry:
            return entries[picture]

    keys = [entry.key for entry in knowledge.entries]
    for start in range(len(keys)):
        plan = plan_for(combination, keys[start:] + keys[:start], task=task, language=language)
        _, user = build_prompt(plan, num_negatives=2)
        answer = write_answer(ByKey(), user, plan.image_ids, Faults())  # type: ignore[arg-type]
        parsed = parse_answer(json.dumps(answer), "stop", plan, {key: key for key in plan.image_ids}, num_negatives=2)
        assert isinstance(parsed, Parsed), parsed
        sample = parsed.sample
        assert sample.query.text is None or sample.query.text.strip("?") != sample.positive.text
