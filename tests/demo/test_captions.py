"""What the base model reads about a picture: never a held-out language, and never what a query asks."""

from __future__ import annotations

import random
import unicodedata
from collections import defaultdict

import pytest

from mme5core.demo.benchmark import held_out_languages, queries
from mme5core.demo.captions import LINE_SHARE, PROMPT_SHARE, PROMPTS, Captions
from mme5core.demo.corpus import Picture
from mme5core.demo.instructions import INSTRUCTIONS, QUERY_INSTRUCTION
from mme5core.languages import XTD_LANGUAGES


def fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def texts_in(picture: Picture, codes: set[str]) -> set[str]:
    """Every text that may be drawn of a picture in these languages: a name, one keyword, or two of them."""
    found: set[str] = set()
    for code in codes & picture.emoji.names.keys():
        found.add(picture.emoji.names[code])
        words = picture.emoji.keywords.get(code, ())
        found |= {", ".join((a, b)) for a in words for b in words if a != b} if len(words) > 1 else set(words)
    return found


def without_prompt(caption: str) -> str:
    for prompt in PROMPTS:
        caption = caption.removeprefix(f"{prompt} ")
    return caption.removesuffix("\n")


@pytest.fixture(scope="module")
def drawn(all_pictures: list[Picture]) -> dict[str, set[str]]:
    """What 40 draws of every tenth picture gave, by key."""
    captions, random_ = Captions(all_pictures), random.Random(0)
    found = defaultdict(set)
    for index in range(0, len(all_pictures), 10):
        for _ in range(40):
            found[all_pictures[index].key].add(without_prompt(captions.draw(index, random_)))
    return found


def test_no_draw_is_in_a_held_out_language(all_pictures: list[Picture], drawn: dict[str, set[str]]) -> None:
    by_key = {picture.key: picture for picture in all_pictures}
    num_in_benchmark_languages = 0
    for key, texts in drawn.items():
        picture = by_key[key]
        held_out = held_out_languages(picture)
        allowed = texts_in(picture, picture.emoji.names.keys() - held_out)
        assert texts <= allowed
        # Some texts are in two languages; those of the held-out one alone must never come.
        assert not texts & (texts_in(picture, set(held_out)) - allowed)
        num_in_benchmark_languages += len(texts & texts_in(picture, set(XTD_LANGUAGES) - held_out))
    # The other six benchmark languages are read, else the above would be no finding.
    assert num_in_benchmark_languages > len(drawn)


def test_no_text_that_may_be_drawn_is_what_an_unseen_query_asks(all_pictures: list[Picture]) -> None:
    by_key = {picture.key: picture for picture in all_pictures}
    asked = queries(all_pictures, "unseen")
    assert len(asked) > 1000
    drawable = set()
    for row in asked:
        picture = by_key[row["positive_id"]]
        codes = picture.emoji.names.keys() - held_out_languages(picture)
        single = {words[0] for code, words in picture.emoji.keywords.items() if code in codes and len(words) == 1}
        if fold(row["text"]) in {fold(text) for text in single | {picture.emoji.names[code] for code in codes}}:
            drawable.add(row["id"])
    assert drawable == set()


def test_no_look_of_an_unseen_query_is_read_about_in_its_language(all_pictures: list[Picture]) -> None:
    # A picture is known by its pixels: the flags of Norway and Svalbard are one picture with two names.
    by_look = defaultdict(list)
    for picture in all_pictures:
        by_look[picture.sha256].append(picture)
    by_key = {picture.key: picture for picture in all_pictures}
    read = [
        (row["language"], row["text"], double.emoji.names[row["language"]])
        for row in queries(all_pictures, "unseen")
        for double in by_look[by_key[row["positive_id"]].sha256]
        if row["language"] in double.emoji.names.keys() - held_out_languages(double)
    ]
    assert read == []


def test_the_tokenizer_reads_every_name_that_may_be_drawn_and_none_that_is_held_out(
    all_pictures: list[Picture],
) -> None:
    chosen = all_pictures[::50]
    texts = set(Captions(chosen).tokenizer_texts())
    assert QUERY_INSTRUCTION in texts and {picture.emoji.english_name for picture in chosen} <= texts
    names = [name for picture in chosen for name in picture.emoji.names.values()]
    for picture in chosen:
        for code in held_out_languages(picture) & picture.emoji.names.keys():
            if names.count(picture.emoji.names[code]) == 1:
                assert picture.emoji.names[code] not in texts


def test_the_same_random_state_draws_the_same_captions(all_pictures: list[Picture]) -> None:
    captions = Captions(all_pictures[:20])
    first = [captions.draw(index, random.Random(index)) for index in range(20)]
    assert first == [captions.draw(index, random.Random(index)) for index in range(20)]
    assert len({captions.draw(3, random.Random(seed)) for seed in range(20)}) > 5


def test_some_captions_end_their_line_and_a_few_follow_a_prompt_that_is_no_instruction(
    all_pictures: list[Picture],
) -> None:
    captions = Captions(all_pictures[:20])
    drawn = [captions.draw(3, random.Random(seed)) for seed in range(1000)]
    prompted = [caption for caption in drawn if caption.startswith(PROMPTS)]
    others = [caption for caption in drawn if not caption.startswith(PROMPTS)]
    assert abs(len(prompted) / 1000 - PROMPT_SHARE) < 0.03 and all(caption.endswith("\n") for caption in prompted)
    assert abs(sum(caption.endswith("\n") for caption in others) / len(others) - LINE_SHARE) < 0.06
    assert not set(PROMPTS) & {text for texts in INSTRUCTIONS.values() for text in texts}
