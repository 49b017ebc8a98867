"""Tests of the language table: complete, and drawn with English far ahead."""

from __future__ import annotations

import pytest

from mme5core.languages import LANGUAGES, XTD_LANGUAGES, language_weight

# XLM-R's languages without its five romanised ones, Burmese in Zawgyi and traditional Chinese.
XLM_R = (
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr hu hy id is "
    "it ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt ro ru sa sd si sk sl "
    "so sq sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh"
)


def test_the_languages_are_the_93_of_xlm_r() -> None:
    assert list(LANGUAGES) == XLM_R.split()
    assert len(LANGUAGES) == 93


def test_no_two_languages_have_one_name() -> None:
    assert len(set(LANGUAGES.values())) == 93


def test_the_benchmark_languages_are_known_and_not_english() -> None:
    assert len(set(XTD_LANGUAGES)) == 7
    assert set(XTD_LANGUAGES) < set(LANGUAGES) - {"en"}


def test_the_weights_of_all_languages_add_up_as_counted_by_hand() -> None:
    # English, then 15 of high, 28 of middle and the other 49 of low resources.
    assert sum(map(language_weight, LANGUAGES)) == 40 + 15 * 6 + 28 * 3 + 49 * 1


def test_english_is_drawn_most_and_benchmark_languages_more_than_the_median() -> None:
    others = sorted(language_weight(code) for code in LANGUAGES if code != "en")
    assert language_weight("en") > 5 * others[-1]
    assert all(language_weight(code) > others[len(others) // 2] for code in XTD_LANGUAGES)


@pytest.mark.parametrize("code", ["xx", "EN", "", "English"])
def test_an_unknown_language_is_named(code: str) -> None:
    with pytest.raises(ValueError, match=f"unknown language {code!r}.*zh"):
        language_weight(code)
