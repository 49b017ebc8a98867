"""What the demo measures: unseen pairs of picture and language, and similar pictures."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter, defaultdict
from typing import Any

import pytest

from mme5core.demo.annotations import Emoji
from mme5core.demo.benchmark import (
    NUM_NEIGHBOURS,
    VALIDATION_LANGUAGES,
    candidates,
    held_out_languages,
    holdout_rows,
    neighbours,
    queries,
)
from mme5core.demo.corpus import Picture
from mme5core.languages import XTD_LANGUAGES


def fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def made_up(key: str, name: str, names: dict[str, str], *, character: str, look: str = "") -> Picture:
    emoji = Emoji(character, "group", "subgroup", name, {"en": name} | names)
    return Picture(key, emoji, look or key)


@pytest.fixture(scope="module")
def unseen(all_pictures: list[Picture]) -> list[dict[str, Any]]:
    return queries(all_pictures, "unseen")


@pytest.fixture(scope="module")
def seen(all_pictures: list[Picture]) -> list[dict[str, Any]]:
    return queries(all_pictures, "seen")


def test_the_holdout_names_every_pair_that_is_unseen(all_pictures: list[Picture]) -> None:
    rows = holdout_rows(all_pictures)
    pairs = {(row["image_id"], row["language"]) for row in rows}
    assert len(pairs) == len(rows) == 2 * len(all_pictures)
    assert pairs == {(p.key, code) for p in all_pictures for code in held_out_languages(p)}
    # One of the benchmark's and one of the validation's for each, each of the seven about as often as the others.
    share = Counter(language for _, language in pairs)
    for languages in (XTD_LANGUAGES, VALIDATION_LANGUAGES):
        counts = [share.pop(code) for code in languages]
        assert sum(counts) == len(all_pictures) and min(counts) > 0.5 * len(all_pictures) / 7
    assert not share


def test_the_validation_asks_of_held_out_pairs_in_other_languages_than_the_benchmark(
    all_pictures: list[Picture],
) -> None:
    assert not set(VALIDATION_LANGUAGES) & set(XTD_LANGUAGES)
    pairs = {(row["image_id"], row["language"]) for row in holdout_rows(all_pictures)}
    rows = queries(all_pictures, "validation")
    assert len(rows) > 1000 and {row["language"] for row in rows} == set(VALIDATION_LANGUAGES)
    assert all((row["positive_id"], row["language"]) in pairs for row in rows)


def test_an_emoji_and_its_toned_variant_are_held_out_in_the_same_languages(all_pictures: list[Picture]) -> None:
    by_look = defaultdict(set)
    for picture in all_pictures:
        by_look[picture.emoji.without_tone].add(held_out_languages(picture))
    assert all(len(languages) == 1 for languages in by_look.values())
    assert len(by_look) < len(all_pictures)


def test_unseen_queries_are_on_held_out_pairs_and_seen_ones_are_not(
    all_pictures: list[Picture], unseen: list[dict[str, Any]], seen: list[dict[str, Any]]
) -> None:
    pairs = {(row["image_id"], row["language"]) for row in holdout_rows(all_pictures)}
    assert all((row["positive_id"], row["language"]) in pairs for row in unseen)
    assert not any((row["positive_id"], row["language"]) in pairs for row in seen)


def test_an_unseen_query_is_not_spelt_as_a_name_in_a_language_that_may_be_seen(
    all_pictures: list[Picture], unseen: list[dict[str, Any]]
) -> None:
    by_key = {picture.key: picture for picture in all_pictures}
    num_spelt_the_same = 0
    for row in unseen:
        picture = by_key[row["positive_id"]]
        readable = {fold(n) for code, n in picture.emoji.names.items() if code not in held_out_languages(picture)}
        assert row["text"] == picture.emoji.names[row["language"]]
        assert fold(row["text"]) not in readable
    asked = {(row["positive_id"], row["language"]) for row in unseen}
    for picture in candidates(all_pictures):
        for code in held_out_languages(picture) & set(XTD_LANGUAGES):
            others = {fold(n) for c, n in picture.emoji.names.items() if c not in held_out_languages(picture)}
            if fold(picture.emoji.names.get(code, "")) in others:
                num_spelt_the_same += 1
                assert (picture.key, code) not in asked
    # There are such names in CLDR ("robot", "pizza", ...); without any, nothing would have been tested.
    assert num_spelt_the_same > 20


def test_a_name_in_full_width_or_capitals_counts_as_spelt_the_same() -> None:
    probe = made_up("0", "x", {}, character="\U0001f916")
    (language,) = held_out_languages(probe) & set(XTD_LANGUAGES)
    other = "de"
    same = made_up("0", "x", {language: "ＲＯＢＯＴ", other: "Robot"}, character="\U0001f916")
    differs = made_up("0", "x", {language: "ＲＯＢＯＴＯ", other: "Robot"}, character="\U0001f916")
    assert [row["language"] for row in queries([same], "unseen")] == []
    assert [row["language"] for row in queries([differs], "unseen")] == [language]


def test_a_name_that_two_candidates_share_is_no_query(
    unseen: list[dict[str, Any]], all_pictures: list[Picture]
) -> None:
    by_language: dict[str, list[str]] = defaultdict(list)
    for picture in candidates(all_pictures):
        for code in XTD_LANGUAGES:
            by_language[code].append(fold(picture.emoji.names.get(code, "")))
    shared = {code: {n for n, count in Counter(names).items() if count > 1} for code, names in by_language.items()}
    assert sum(len(names) for names in shared.values()) > 0
    assert not any(fold(row["text"]) in shared[row["language"]] for row in unseen)


def test_no_two_candidates_look_alike_and_none_has_a_skin_tone(all_pictures: list[Picture]) -> None:
    found = candidates(all_pictures)
    assert len({picture.sha256 for picture in found}) == len(found)
    assert not any(picture.emoji.has_tone for picture in found)
    assert {p.sha256 for p in all_pictures if not p.emoji.has_tone} == {p.sha256 for p in found}


def test_every_query_has_one_candidate_and_an_id_of_its_own(
    all_pictures: list[Picture], unseen: list[dict[str, Any]], seen: list[dict[str, Any]]
) -> None:
    found = {picture.key for picture in candidates(all_pictures)}
    rows = unseen + seen
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["positive_id"] for row in rows} <= found
    per_language = Counter(row["language"] for row in unseen)
    assert Counter(row["language"] for row in seen) == per_language
    assert set(per_language) == set(XTD_LANGUAGES) and min(per_language.values()) > 50


def test_queries_do_not_depend_on_how_often_they_are_drawn(
    all_pictures: list[Picture], seen: list[dict[str, Any]]
) -> None:
    assert queries(all_pictures, "seen") == seen


def test_neighbours_never_hold_the_picture_itself_nor_its_double(all_pictures: list[Picture]) -> None:
    look = {picture.key: picture.sha256 for picture in all_pictures}
    rows = neighbours(all_pictures)
    assert not any(look[row["query_id"]] == look[row["candidate_id"]] for row in rows)
    per_query: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        per_query[row["query_id"]].append(row)
    assert set(per_query) == set(look)
    for found in per_query.values():
        assert [row["rank"] for row in found] == list(range(1, len(found) + 1)) and len(found) <= NUM_NEIGHBOURS
        assert len({row["candidate_id"] for row in found}) == len(found)


def test_of_a_few_pictures_all_are_neighbours_but_the_double() -> None:
    norway, svalbard = (made_up(key, key, {}, character=key, look="one flag") for key in "ns")
    france = made_up("f", "f", {}, character="f")
    pairs = {(row["query_id"], row["candidate_id"]) for row in neighbours([norway, svalbard, france])}
    assert pairs == {("n", "f"), ("s", "f"), ("f", "n"), ("f", "s")}


def test_neighbours_are_variants_first_and_then_by_shared_keywords() -> None:
    words = {"0": "abcd", "1": "abcx", "2": "axyz", "3": "", "4": "abcd"}

    def picture(key: str, character: str, subgroup: str = "s") -> Picture:
        return Picture(key, Emoji(character, "g", subgroup, f"name {key}", {}, {"en": tuple(words[key])}), key)

    pictures = [picture("0", "\U0001f3c3"), picture("1", "A"), picture("2", "B"), picture("4", "C", "other")]
    pictures.insert(3, dataclasses.replace(picture("3", "\U0001f3c3\u200d\u2640\ufe0f")))
    rows = [row for row in neighbours(pictures) if row["query_id"] == "0"]
    # Jaccard over keywords and name, halved: 3 of 4+4+2-3 = 7, 1 of 9, 4 of 6; a variant has 0.5 more.
    # A picture of another subgroup comes last, however much it shares.
    expected = [("3", "variant", 0.5), ("1", "subgroup", 1.5 / 7), ("2", "subgroup", 0.5 / 9), ("4", "group", 2 / 6)]
    assert [(row["candidate_id"], row["source"]) for row in rows] == [(key, source) for key, source, _ in expected]
    assert [row["score"] for row in rows] == pytest.approx([score for _, _, score in expected])
