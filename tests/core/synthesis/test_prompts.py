"""Tests of what the teacher is asked: names, pictures and fields follow from the plan."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mme5core.asking.request import prompt_hash
from mme5core.synthesis.plan import COMBINATIONS, PlannedSample
from mme5core.synthesis.prompts import ASPECTS, CRITERIA, answer_schema, build_prompt

PLANNED = [(task, combination) for task, combinations in COMBINATIONS.items() for combination in combinations]


def planned(task: str, combination: str, language: str = "it") -> PlannedSample:
    query, _, document = combination.partition("2")
    negatives = ("c", "d") if "I" in document else ()
    return PlannedSample(
        "s",
        task,
        combination,
        language,
        "a" if "I" in query else None,
        "b" if "I" in document else None,
        negatives,
    )


def step_of(user: str, number: int) -> str:
    return next(line for line in user.splitlines() if line.startswith(f"{number}. "))


def objects_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    if schema["type"] == "array":
        return objects_of(schema["items"])
    if schema["type"] != "object":
        return []
    return [schema, *(found for value in schema["properties"].values() for found in objects_of(value))]


@pytest.mark.parametrize(("task", "combination"), PLANNED)
def test_the_head_names_task_combination_language_and_count(task: str, combination: str) -> None:
    _, user = build_prompt(planned(task, combination), num_negatives=2)
    assert user.splitlines()[:4] == [
        f"Task: {task}",
        f"Modality combination: {combination}",
        "Language: Italian (it)",
        "Hard negatives: 2",
    ]


@pytest.mark.parametrize(("task", "combination"), PLANNED)
def test_every_picture_is_named_once_in_the_plans_order(task: str, combination: str) -> None:
    plan = planned(task, combination)
    _, user = build_prompt(plan, num_negatives=2)
    line = next(line for line in user.splitlines() if line.startswith("Pictures, in order: "))
    names = re.findall(r"(\d+)\. the (?:picture of )?(query|positive|hard negative \d)", line)
    expected = ["query"] if plan.query_image else []
    expected += ["positive"] if plan.positive_image else []
    expected += ["hard negative 1", "hard negative 2"] if plan.negative_images else []
    assert names == [(str(number), name) for number, name in enumerate(expected, start=1)]
    assert len(names) == len(plan.image_ids)


@pytest.mark.parametrize(("task", "combination"), PLANNED)
def test_prompt_and_schema_ask_for_the_same_texts(task: str, combination: str) -> None:
    plan = planned(task, combination)
    _, user = build_prompt(plan, num_negatives=2)
    query, _, document = combination.partition("2")
    expected = ["instruction"] + ["query"] * ("T" in query) + ["positive", "negatives"] * ("T" in document)
    schema = answer_schema(plan)
    for part in ("draft", "revision"):
        assert list(schema["properties"][part]["properties"]) == expected
    assert re.findall(r"(instruction|query|positive|negatives) \(", step_of(user, 2)) == expected
    assert ("a list of 2" in step_of(user, 2)) == ("T" in document)


@pytest.mark.parametrize(("task", "combination"), PLANNED)
def test_every_object_of_the_schema_is_strict(task: str, combination: str) -> None:
    objects = objects_of(answer_schema(planned(task, combination)))
    assert len(objects) == 9  # the answer, pictures, draft, revision, the evaluation and its four judgements
    for found in objects:
        assert found["required"] == list(found["properties"])
        assert found["additionalProperties"] is False


def test_one_answer_describes_drafts_evaluates_improves_and_revises() -> None:
    properties = answer_schema(planned("vqa", "IT2T"))["properties"]
    assert list(properties) == ["images", "draft", "evaluation", "improvements", "revision"]
    assert tuple(properties["images"]["items"]["properties"]) == ASPECTS
    assert tuple(properties["evaluation"]["properties"]) == CRITERIA
    _, user = build_prompt(planned("vqa", "IT2T"), num_negatives=1)
    assert [re.match(r"\d\. (\w+):", step_of(user, number))[1] for number in range(1, 6)] == list(properties)  # type: ignore[index]


def test_texts_are_asked_for_in_the_language_and_the_instruction_in_english() -> None:
    _, user = build_prompt(planned("retrieval", "I2T", "zh"), num_negatives=1)
    assert "instruction is always in English" in user
    assert "is in Chinese (zh)" in user
    _, pictures_only = build_prompt(planned("retrieval", "I2I", "zh"), num_negatives=1)
    assert "Every other text" not in pictures_only
    assert "No hard negative may equal" not in pictures_only


def test_the_hash_changes_with_either_text() -> None:
    assert len({prompt_hash("a", "b"), prompt_hash("a", "c"), prompt_hash("c", "b"), prompt_hash("b", "a")}) == 4
    assert prompt_hash("a", "b") == prompt_hash("a", "b")


def test_no_two_plans_have_one_prompt() -> None:
    kinds = [(planned(*what, language), number) for what in PLANNED for language in ("it", "zh") for number in (1, 2)]
    assert len({build_prompt(plan, num_negatives=number) for plan, number in kinds}) == len(kinds)
