"""Tests of the content key: equal where a model sees the same, and nowhere else."""

from __future__ import annotations

import itertools

import pytest

from mme5core.content_key import content_key

Parts = tuple[str | None, bytes | None, str | None]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", None, "b"), ("b", None, "a")),
        (("ab", None, "c"), ("a", None, "bc")),
        (("a", b"p", None), ("a", b"q", None)),
        (("a", b"p", None), ("a", None, None)),
        (("a", b"", None), ("a", None, None)),
        (("a", None, "i"), ("a", None, None)),
        (("a ", None, None), ("a", None, None)),
        (("A", None, None), ("a", None, None)),
        (("é", None, None), ("e\u0301", None, None)),
    ],
)
def test_contents_that_a_model_sees_apart_have_other_keys(one: Parts, other: Parts) -> None:
    assert content_key(*one) != content_key(*other)


@pytest.mark.parametrize(("one", "other"), [(("a", None, None), ("a", None, "")), ((None, b"p", "i"), ("", b"p", "i"))])
def test_absent_and_empty_texts_are_the_same(one: Parts, other: Parts) -> None:
    assert content_key(*one) == content_key(*other)


def test_no_way_to_cut_one_string_into_the_parts_gives_a_key_twice() -> None:
    text = "3 0 猫a"
    cuts = itertools.combinations_with_replacement(range(len(text) + 1), 2)
    keys = [content_key(text[:i], text[i:j].encode(), text[j:]) for i, j in cuts]
    assert len(set(keys)) == len(keys)


def test_a_key_has_16_bytes() -> None:
    assert len(content_key("a", b"p", "i")) == 16
