"""Tests of what texts give away: languages where one can tell, refusals, labels."""

from __future__ import annotations

import pytest

from mme5core.demo.annotations import load_emoji
from mme5core.languages import LANGUAGES
from mme5core.synthesis.text_checks import is_refusal, leaked_label, wrong_language

ENGLISH = ["a photo of a dog that lies on a red sofa", "and looks at something behind the camera"]


@pytest.mark.parametrize("language", sorted(set(LANGUAGES) - {"en", "su"}))
def test_english_is_noticed_in_place_of_any_language_that_one_can_tell(language: str) -> None:
    assert wrong_language(ENGLISH, language)


def test_names_in_their_own_language_pass() -> None:
    emoji = load_emoji()
    num_wrong = num_asked = 0
    for language in LANGUAGES:
        names = [e.names[language] for e in emoji if language in e.names]
        for start in range(0, len(names) - 3, 40):
            num_asked += 1
            num_wrong += wrong_language(names[start : start + 3], language) is not None
    assert num_asked > 3000
    assert num_wrong / num_asked < 0.001


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (["iPhone 15"], "ru"),  # too few letters to judge
        (["Отличная чашка Starbucks на столе"], "ru"),
        (["スターバックスのカップと猫がいる", "東京タワー"], "ja"),
        (["mačka na crvenom kauču u dnevnoj sobi"], "hr"),
        (["mačka na crvenom kauču u dnevnoj sobi"], "bs"),  # near enough to pass for one another
        (["мачка на црвеном каучу у дневној соби"], "sr"),
        (["mačka na crvenom kauču u dnevnoj sobi"], "sr"),  # written in both
        ([], "zh"),
    ],
)
def test_what_cannot_be_held_against_a_text_is_not(texts: list[str], language: str) -> None:
    assert wrong_language(texts, language) is None


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("I'm sorry, but I can't help with identifying people.", True),
        ("I’m unable to describe this picture.", True),
        ("As an AI, I do not see pictures.", True),
        ("Unfortunately, I cannot do that", True),
        ("The sorry state of this roof", False),
        ("I can see a cat", False),
    ],
)
def test_refusals(text: str, is_one: bool) -> None:
    assert is_refusal(text) == is_one


@pytest.mark.parametrize(
    "text", ["Query: a cat", "positive : cat", "**Answer:** a cat", "Hard Negative 2: dog", "1. x"]
)
def test_labels_at_the_start_of_a_text(text: str) -> None:
    assert (leaked_label(text) is not None) == (text != "1. x")
