"""Tests of the nouns: they derive what can be derived and refuse the impossible."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from mme5core.types import MODALITIES, Content, Modality, Sample

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
