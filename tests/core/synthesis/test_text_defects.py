"""Texts that are refused for what they are, and their neighbours that are not."""

from __future__ import annotations

import pytest

from mme5core.demo.annotations import load_emoji
from mme5core.synthesis.comparable import comparable
from mme5core.synthesis.scores import self_evaluation
from mme5core.synthesis.text_defects import defect_of

DEFECTS = {
    "placeholder": [
        "...",
        "…",
        ". . .",
        '"..."',
        "---",
        "___",
        "???",
        "N/A",
        "n/a.",
        "N.A.",
        "null",
        "TBD",
        "[query]",
        "<positive>",
        "{{instruction}}",
        "[insert text here]",
        "your question here",
        "Same as the draft.",
        "see draft",
        "Lorem ipsum dolor",
    ],
    "refusal": [
        "I'm sorry, but I can't help with that.",
        "I cannot identify the person.",
        "As an AI, I do not see pictures.",
        "Unfortunately, I am unable to describe this.",
        "Lo siento, no puedo ayudar con eso",
        "抱歉，我无法描述这张图片",
    ],
    "leaked_label": [
        "Réponse : un chat",
        "Antwort: eine Katze",
        "Ответ: кошка",
        "答案：猫",
        "الإجابة: قطة",
        "**Pregunta:** ¿qué es?",
        "Positive: a cat",
        "Frage : was ist das?",
        "답변: 고양이",
    ],
    "address": [
        "https://a.example/cat.jpg",
        "a cat (see www.cats.example)",
        "write to cat@cats.example",
        "data:image/png;base64,xx",
    ],
    "repetition": [
        "a" * 16_000,
        "ha " * 400,
        "the cat sat on the mat " * 12,
        "猫" * 200,
        "one rather long sentence about a cat that lies on a sofa and looks out of the window at a bird. " * 12,
    ],
}
FINE = [
    "5",
    "?",
    "-",
    "!?",
    "C",
    "none",
    "no answer",
    "null and void",
    "a string",
    "a cat...",
    "the query of a king",
    "(text)ile",
    "I can't find my cat: where is it?",
    "I'm sorry for your loss, says the card",
    "We can't wait to see you",
    "sorry cat",
    "flag: Norway",
    "keycap: 5",
    "woman: beard",
    "mujer: pelo rojo",
    "question mark",
    "3:1",
    "a cat @ home",
    "10 km/h",
    "no no no no no no no",
    "la la la la la la la la la la la",
    "ha" * 20,
    "Ho ho ho! " * 5,
    "example.com logo",
    "9" * 30,
    "ratio 16:9",
    "¿Qué es esto?",
]


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, texts in DEFECTS.items() for text in texts])
def test_a_text_that_is_none_is_refused_by_its_reason(reason: str, text: str) -> None:
    defect = defect_of(text)
    assert defect is not None and defect[0] == reason and len(defect[1]) <= 80


@pytest.mark.parametrize("text", FINE)
def test_a_text_that_may_be_right_is_not_refused(text: str) -> None:
    assert defect_of(text) is None


def test_no_name_in_any_language_is_a_defect() -> None:
    names = {name for emoji in load_emoji() for name in emoji.names.values()}
    assert len(names) > 80_000 and not [name for name in names if defect_of(name)]


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        ("gatto", "Gatto.", True),
        ("a cat", "  A   CAT !", True),
        ("ｃａｔ", "cat", True),
        ("“cat”", "cat", True),
        ("ﬁsh", "fish", True),
        ("STRASSE", "straße", True),
        ("cats'", "cats", True),
        ("C++", "C#", False),
        ("-1", "1", False),
        ("3.5", "35", False),
        ("5 %", "5", False),
        ("कि", "की", False),
        ("กา", "กี", False),
        ("♥", "♦", False),
        ("?", "!", False),
    ],
)
def test_texts_are_held_against_each_other_without_what_does_not_tell_them_apart(
    one: str, other: str, are_equal: bool
) -> None:
    assert (comparable(one) == comparable(other)) == are_equal


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((4, 3, 5, 1), (4, 3, 5, 1)),
        (("4", "3.5", " 5 ", "1/5"), (4, 3.5, 5, 1)),
        (("4 out of 5", "4/5", 4.0, "Score: 2"), (4, 4, 4, 2)),
        ((8, 6, 10, 2), (4, 3, 5, 1)),  # one above 5: all are of ten
        (("8/10", "4/10", "2/10", 2), (4, 2, 1, 1)),
        (("4/10", 4, 4, 4), (2, 2, 2, 2)),
        ((4, None, "good", True), (4, None, None, None)),
        ((4, float("nan"), float("inf"), 0), (4, None, None, None)),
        ((4, 50, -1, "50"), (4, None, None, None)),
    ],
)
def test_scores_are_read_as_numbers_on_one_scale(
    scores: tuple[object, ...], expected: tuple[float | None, ...]
) -> None:
    names = ("relevance", "plausibility", "clarity", "diversity")
    wanted = {name: score for name, score in zip(names, expected, strict=True) if score is not None}
    for shape in ("object", "number"):
        evaluation = {
            name: {"judgement": "so", "score": score} if shape == "object" else score
            for name, score in zip(names, scores, strict=True)
        }
        assert self_evaluation({"evaluation": evaluation}) == wanted
