"""Tests of the teacher's answer: the revision becomes the sample, and every defect has its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mme5core.asking.question import Retry
from mme5core.synthesis.answer import (
    IMAGE_DOCUMENT_INSTRUCTION,
    IMAGE_TEXT_DOCUMENT_INSTRUCTION,
    Parsed,
    parse_answer,
    read_json,
)
from mme5core.synthesis.plan import PlannedSample
from mme5core.types import Content, Rejected, Sample

IMAGES = {name: name.encode() for name in "qpab"}
REVISION = {
    "instruction": "Find the animal.",
    "query": "una domanda",
    "positive": "gatto",
    "negatives": ["cane", "lupo"],
}
DRAFT = {"instruction": "draft", "query": "draft", "positive": "draft", "negatives": ["draft 1", "draft 2"]}


def planned(combination: str) -> PlannedSample:
    query, _, document = combination.partition("2")
    has_document_picture = "I" in document
    return PlannedSample(
        "s",
        "retrieval",
        combination,
        "it",
        "q" if "I" in query else None,
        "p" if has_document_picture else None,
        ("a", "b") if has_document_picture else (),
    )


def parsed(
    combination: str = "IT2T", *, num_negatives: int = 2, finish_reason: str | None = "stop", **changes: Any
) -> Sample | Rejected:
    text = json.dumps({"draft": DRAFT, "revision": REVISION | changes}, ensure_ascii=False)
    found = parse_answer(text, finish_reason, planned(combination), IMAGES, num_negatives=num_negatives)
    return found if isinstance(found, Rejected) else found.sample


def reason_of(found: Sample | Rejected) -> str:
    assert isinstance(found, Rejected)
    assert found.id == "s"
    return found.reason


def test_the_revision_and_never_the_draft_becomes_the_sample() -> None:
    negatives = (Content("cane"), Content("lupo"))
    expected = Sample("s", Content("una domanda", b"q"), Content("gatto"), negatives, "Find the animal.", None, "synth")
    assert parsed() == expected


@pytest.mark.parametrize("combination", ["I2T", "IT2T", "T2I", "T2IT", "I2I", "IT2I", "IT2IT"])
def test_the_sample_has_the_modalities_of_its_plan_on_both_sides(combination: str) -> None:
    sample = parsed(combination)
    assert isinstance(sample, Sample)
    assert sample.modality_combination == combination
    assert [negative.modality for negative in sample.negatives] == [sample.positive.modality] * 2


def test_documents_with_text_and_picture_keep_both_together_in_order() -> None:
    sample = parsed("T2IT")
    assert isinstance(sample, Sample)
    assert sample.query == Content("una domanda")
    assert (sample.positive, *sample.negatives) == (
        Content("gatto", b"p"),
        Content("cane", b"a"),
        Content("lupo", b"b"),
    )


def test_documents_with_pictures_have_the_instruction_of_their_kind() -> None:
    found = {combination: parsed(combination) for combination in ("I2T", "T2I", "T2IT")}
    instructions = {name: sample.document_instruction for name, sample in found.items() if isinstance(sample, Sample)}
    assert instructions == {"I2T": None, "T2I": IMAGE_DOCUMENT_INSTRUCTION, "T2IT": IMAGE_TEXT_DOCUMENT_INSTRUCTION}


def test_texts_are_stripped_and_negatives_cut_to_the_number_wanted() -> None:
    sample = parsed(query=" q\n", positive="\tp ", negatives=[" a ", "b", "c"], instruction=" i ")
    assert isinstance(sample, Sample)
    texts = [content.text for content in (sample.query, sample.positive, *sample.negatives)]
    assert [sample.instruction, *texts] == ["i", "q", "p", "a", "b"]


def test_fields_that_the_combination_has_not_are_not_looked_at() -> None:
    assert isinstance(parsed("I2I", query="", positive=None, negatives="none"), Sample)
    assert isinstance(parsed("I2T", query=None), Sample)


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ('{"revision": ', "length", "cut_off"),
        (json.dumps({"revision": REVISION}), "length", "cut_off"),
        (json.dumps({"revision": REVISION}), "content_filter", "refusal"),
        ("", "stop", "refusal"),
        (" \n", None, "refusal"),
        ("I cannot help with that.", "stop", "refusal"),
        ("As asked, a sample follows.", "stop", "not_json"),
        ('{"revision": ', "stop", "not_json"),
        ("[]", "stop", "missing_field"),
        ("null", "stop", "missing_field"),
        (json.dumps({"draft": REVISION}), "stop", "missing_field"),
        (json.dumps({"revision": [REVISION]}), "stop", "missing_field"),
    ],
)
def test_an_answer_without_a_revision_is_refused_by_what_it_is(
    text: str, finish_reason: str | None, reason: str
) -> None:
    assert reason_of(parse_answer(text, finish_reason, planned("IT2T"), IMAGES, num_negatives=1)) == reason


@pytest.mark.parametrize("field", ["instruction", "query", "positive", "negatives"])
def test_a_field_that_is_missing_or_empty_is_named(field: str) -> None:
    missing = parsed(**{field: None})
    assert (reason_of(missing), missing) == ("missing_field", Rejected("s", "missing_field", field))
    empty = parsed(**{field: ["cane", " "] if field == "negatives" else " \n"})
    assert empty == Rejected("s", "empty_field", field)


@pytest.mark.parametrize("field", ["instruction", "query", "positive", "negatives"])
@pytest.mark.parametrize(
    "token", ["<image>", "<|image|>", "<image_1>", "<|image_pad|>", "<|vision_start|>", "<|begin_of_text|>"]
)
def test_a_token_of_the_model_in_a_text_is_refused(field: str, token: str) -> None:
    text = f"see {token} here"
    assert reason_of(parsed(**{field: ["cane", text] if field == "negatives" else text})) == "image_token"


@pytest.mark.parametrize("text", ["a < b > c", "the image", "<b>bold</b>", "| image |", "imago <3"])
def test_ordinary_signs_are_no_token(text: str) -> None:
    assert isinstance(parsed(query=text), Sample)


@pytest.mark.parametrize("negative", ["gatto", " Gatto\n", "GATTO"])
def test_a_positive_among_the_negatives_is_refused_in_any_spelling(negative: str) -> None:
    assert reason_of(parsed(negatives=["cane", negative, "lupo"])) == "positive_equals_negative"


@pytest.mark.parametrize("negatives", [[], ["cane"], ["cane", "cane"], ["cane", " cane "]])
def test_too_few_different_negatives_are_refused(negatives: list[str]) -> None:
    assert reason_of(parsed(negatives=negatives)) == "too_few_negatives"


def test_documents_that_differ_by_their_picture_may_share_a_text() -> None:
    sample = parsed("IT2IT", positive="gatto", negatives=["gatto", "gatto"])
    assert isinstance(sample, Sample)
    assert sample.negatives == (Content("gatto", b"a"), Content("gatto", b"b"))
    assert reason_of(parsed("IT2IT", negatives=["gatto"])) == "too_few_negatives"


def test_half_a_character_is_refused_and_a_whole_one_kept() -> None:
    # A surrogate without its partner fits into no UTF-8 file: the sample could not be written.
    whole, half = (
        parse_answer(
            json.dumps({"revision": REVISION}).replace("gatto", escape),
            "stop",
            planned("IT2T"),
            IMAGES,
            num_negatives=2,
        )
        for escape in (r"\ud83d\ude3a", r"\ud83d")
    )
    assert isinstance(whole, Parsed) and whole.sample.positive.text == "\U0001f63a"
    assert isinstance(half, Rejected)


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ('{"a": [1]}', False),
        (' \n{"a": [1]}\n', False),
        ('```json\n{"a": [1]}\n```', True),
        ('Sure! {"a": [1,],} I hope it helps.', True),
    ],
)
def test_json_is_repaired_only_where_it_does_not_parse(text: str, repaired: bool) -> None:
    assert read_json(text) == ({"a": [1]}, repaired)


def test_a_repaired_answer_says_so() -> None:
    text = f"```json\n{json.dumps({'revision': REVISION})}\n```"
    found = parse_answer(text, "stop", planned("IT2T"), IMAGES, num_negatives=2)
    assert isinstance(found, Parsed) and found.repaired
    with pytest.raises(ValueError):
        read_json('{"revision": {"instruction": "cut')


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positive": "Positive: gatto"}, "leaked_label"),
        ({"negatives": ["Hard negative 1: cane", "lupo"]}, "leaked_label"),
        ({"instruction": "Trova nella raccolta il documento che descrive meglio questa immagine."},
         "instruction_not_english"),
        ({"instruction": "Найди описание этой картинки."}, "instruction_not_english"),
        ({"query": "a question about what the animal in this picture is doing on the sofa"}, "wrong_language"),
        ({"query": "вопрос о том, что делает кошка", "positive": "кошка"}, "wrong_language"),
    ],
)  # fmt: skip
def test_texts_in_the_wrong_place_are_refused(changes: dict[str, Any], reason: str) -> None:
    assert reason_of(parsed(**changes)) == reason


def test_a_draft_that_the_teacher_finds_poor_is_refused_below_the_threshold() -> None:
    def judged(lowest: float | None, **scores: object) -> str:
        evaluation = {name: {"judgement": "so", "score": score} for name, score in scores.items()}
        text = json.dumps({"evaluation": evaluation, "revision": REVISION})
        found = parse_answer(text, "stop", planned("IT2T"), IMAGES, num_negatives=2, min_self_evaluation=lowest)
        return found.reason if isinstance(found, Rejected) else "kept"

    assert judged(None, relevance=1) == "kept"
    assert judged(3.0, relevance=3, clarity=3) == "kept"
    assert judged(3.0, relevance=2, clarity=3) == "low_self_evaluation"
    # What cannot be judged is not passed.
    assert judged(3.0) == judged(3.0, relevance="good") == "missing_field"


@pytest.mark.parametrize("query", ["gatto", "Gatto.", " GATTO ", "«gatto»"])
@pytest.mark.parametrize("combination", ["IT2T", "T2IT", "IT2IT"])
def test_a_query_that_is_its_positive_is_refused(query: str, combination: str) -> None:
    assert reason_of(parsed(combination, query=query)) == "query_equals_positive"


@pytest.mark.parametrize("negative", ["gatto.", "Gatto!", "ｇａｔｔｏ"])
def test_a_negative_that_is_the_positive_plus_a_sign_is_refused(negative: str) -> None:
    assert reason_of(parsed(negatives=["cane", negative])) == "positive_equals_negative"
    assert reason_of(parsed(negatives=["cane", "Cane."])) == "too_few_negatives"


@pytest.mark.parametrize(
    ("instruction", "positive", "is_told"),
    [
        ("Find the picture of a red fox.", "red fox", True),
        ("Identify the animal; it is a Red Fox!", "A red fox.", True),
        ("Identify the animal.", "red fox", False),
        ("Is it a red fox or a wolf?", "red fox", False),  # the choices are listed
        ("Answer with yes if it is one.", "yes", False),
        ("Find a description of the foxes.", "fox", False),
    ],
)
def test_an_instruction_that_tells_the_answer_is_refused(instruction: str, positive: str, is_told: bool) -> None:
    found = parsed(instruction=instruction, positive=positive, negatives=["wolf", "bear"])
    assert isinstance(found, Rejected) == is_told
    assert not is_told or reason_of(found) == "instruction_tells_answer"


@pytest.mark.parametrize("field", ["instruction", "query", "positive", "negatives"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [("...", "placeholder"), ("I can't help with that.", "refusal"), ("see https://a.example", "address"),
     ("Risposta: gatto", "leaked_label"), ("no " * 5000, "repetition")],
)  # fmt: skip
def test_each_field_is_judged_as_a_text(field: str, text: str, reason: str) -> None:
    found = parsed(**{field: ["cane", text] if field == "negatives" else text})
    assert reason_of(found) == reason and isinstance(found, Rejected) and found.detail.startswith(field)


def test_one_text_in_the_wrong_language_is_noticed_beside_others_in_the_right_one() -> None:
    english = "a photo of a small brown dog that lies on a red sofa"
    italian = {
        "query": "che cosa sta facendo l'animale che si vede in primo piano nella fotografia di questa pagina?",
        "positive": "il gatto sta dormendo tranquillamente sul divano rosso vicino alla finestra del soggiorno",
    }
    assert isinstance(parsed(**italian), Sample)
    assert reason_of(parsed(**italian, negatives=["il cane corre", english])) == "wrong_language"
    # Of a few words nobody can tell: it may be a name.
    assert isinstance(parsed(**italian, negatives=["il cane corre", "Hot Dog Deluxe"]), Sample)


def test_one_criterion_below_its_own_threshold_refuses_the_sample() -> None:
    def judged(lowest_each: float | None, **scores: object) -> str:
        evaluation = {name: {"judgement": "so", "score": score} for name, score in scores.items()}
        text = json.dumps({"evaluation": evaluation, "revision": REVISION})
        found = parse_answer(text, "stop", planned("IT2T"), IMAGES, num_negatives=2, min_criterion_score=lowest_each)
        return f"{found.reason}: {found.detail}" if isinstance(found, Rejected) else "kept"

    good = {"relevance": 5, "plausibility": 1, "clarity": 5, "diversity": 5}
    assert judged(None, **good) == "kept" == judged(1.0, **good)
    assert judged(2.0, **good).startswith("low_self_evaluation: plausibility 1")
    assert judged(2.0, relevance=5) == "missing_field: evaluation.plausibility"


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_an_answer_that_the_server_broke_off_says_nothing_of_its_sample(reason: str) -> None:
    assert isinstance(parse_answer("", reason, planned("IT2T"), IMAGES, num_negatives=1), Retry)


@pytest.mark.parametrize("reason", ["MAX_TOKENS", "model_length"])
def test_an_answer_that_was_cut_off_is_known_by_every_name(reason: str) -> None:
    found = parse_answer("{", reason, planned("IT2T"), IMAGES, num_negatives=1)
    assert isinstance(found, Rejected) and found.reason == "cut_off"
