"""Tests of the nouns: they derive what can be derived and refuse the impossible."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from mme5core.types import MODALITIES, Content, EvalQuery, Modality, Sample

TEXT, PICTURE, BOTH = Content(text="a cat"), Content(image=b"\xff"), Content(text="a cat", image=b"\xff")


@pytest.mark.parametrize(
    ("content", "modality"),
    [(TEXT, "T"), (PICTURE, "I"), (BOTH, "IT"), (Content(text="", image=b"\xff"), "I"), (Content(text=" "), "T")],
)
def test_the_modality_follows_from_what_is_there(content: Content, modality: Modality) -> None:
    assert content.modality == modality


def test_the_three_contents_are_all_the_modalities() -> None:
    assert {content.modality for content in (TEXT, PICTURE, BOTH)} == set(MODALITIES)


@pytest.mark.parametrize("text", [None, ""])
def test_a_content_of_nothing_is_refused(text: str | None) -> None:
    with pytest.raises(ValueError, match="neither"):
        Content(text=text)


@pytest.mark.parametrize("text", [5, b"bytes", ["a"], 0])
def test_a_text_that_is_no_string_is_refused_by_its_type(text: object) -> None:
    with pytest.raises(ValueError, match=type(text).__name__):
        Content(text=text, image=b"\xff")  # type: ignore[arg-type]


def test_the_combination_names_query_first_and_document_second() -> None:
    assert Sample("a", query=BOTH, positive=PICTURE).modality_combination == "IT2I"
    assert Sample("a", query=PICTURE, positive=BOTH).modality_combination == "I2IT"


def test_negatives_have_no_say_in_the_combination() -> None:
    assert Sample("a", TEXT, TEXT, negatives=(BOTH, PICTURE)).modality_combination == "T2T"


def test_a_content_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TEXT.text = "a dog"  # type: ignore[misc]
    with pytest.raises((AttributeError, TypeError)):  # TypeError: Python 3.11's frozen classes with slots
        BOTH.image = b"other"  # type: ignore[misc]


def test_one_picture_is_the_same_content_however_it_is_given() -> None:
    assert BOTH == Content("a cat", images=(b"\xff",)) == Content("a cat", b"\xff", [b"\xff"])
    assert hash(BOTH) == hash(Content("a cat", images=[b"\xff"]))
    assert (BOTH.image, BOTH.images) == (b"\xff", (b"\xff",))
    assert (TEXT.image, TEXT.images) == (None, ())


@pytest.mark.parametrize(("text", "modality"), [("a cat", "IT"), (None, "I"), ("", "I")])
def test_several_pictures_keep_their_order_and_are_no_single_one(text: str | None, modality: Modality) -> None:
    content = Content(text, images=[b"a", b"b", b"a"])
    assert (content.images, content.image, content.modality) == ((b"a", b"b", b"a"), None, modality)
    assert content != Content(text, images=(b"b", b"a", b"a"))
    assert len({content, Content(text, images=(b"a", b"b", b"a")), Content(text, images=(b"a", b"b"))}) == 2


@pytest.mark.parametrize("content", [TEXT, PICTURE, BOTH, Content("a", images=(b"a", b"b"))])
def test_a_content_is_pickled_and_replaced_as_it_is(content: Content) -> None:
    assert pickle.loads(pickle.dumps(content)) == content
    assert replace(content, text="a dog") == Content("a dog", images=content.images)
    assert replace(content, images=(b"c", b"d")) == Content(content.text, images=(b"c", b"d"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": "cat.jpg"}, "list or tuple of pictures, got str"),
        ({"images": b"\xff"}, "list or tuple of pictures, got bytes"),
        ({"images": None}, "list or tuple of pictures, got NoneType"),
        ({"images": (b"a", None)}, "got None at place 1"),
        ({"image": [b"a", b"b"]}, "image is one picture, got a list; several are given as images="),
        ({"image": b"a", "images": (b"b",)}, "image and images differ"),
        ({"image": b"a", "images": (b"a", b"b")}, r"differ \(2 in images\)"),
        ({"text": "", "images": ()}, "neither"),
    ],
)
def test_pictures_that_cannot_be_meant_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Content(**{"text": "a cat"} | arguments)


def test_a_query_holds_graded_relevance_and_may_have_candidates_of_its_own() -> None:
    query = EvalQuery("q", BOTH, "Find:", {"a": 2.0, "b": 0.5}, candidate_ids=("b", "x", "a"))
    assert (query.relevance["a"], query.candidate_ids, query.language) == (2.0, ("b", "x", "a"), "")
    assert pickle.loads(pickle.dumps(query)) == query
    with pytest.raises(ValueError, match="'q' has 2 relevant candidates, not one"):
        _ = query.positive_id
    assert EvalQuery("q", None, None, {"a": 0.5}).positive_id == "a"


@pytest.mark.parametrize(
    ("relevance", "candidate_ids", "message"),
    [
        ({}, None, "query 'q' has no relevant candidate"),
        ({}, ("a",), "query 'q' has no relevant candidate"),
        ({"a": 1.0, "b": 0.0}, None, "relevance must be > 0 and finite, got 0.0 for 'b'"),
        ({"a": -1.0}, None, "relevance must be > 0 and finite, got -1.0 for 'a'"),
        ({"a": float("inf")}, None, "relevance must be > 0 and finite, got inf"),
        ({"a": float("nan")}, None, "relevance must be > 0 and finite, got nan for 'a'"),
        ({"a": 1.0, "b": 1.0}, ("a", "c"), "'b' is relevant, but not in candidate_ids"),
        ({"a": 1.0}, (), "'a' is relevant, but not in candidate_ids"),
        ({"a": 1.0}, ("a", "b", "a"), "a candidate occurs twice in candidate_ids"),
    ],
)
def test_a_query_that_cannot_be_scored_is_refused(
    relevance: dict[str, float], candidate_ids: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EvalQuery("q", None, None, relevance, candidate_ids)
