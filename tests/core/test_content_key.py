"""Tests of the content key: equal where a model sees the same, and nowhere else."""

from __future__ import annotations

import hashlib
import itertools

import pytest

from mme5core.content_key import content_key, document_key
from mme5core.types import Content

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


def test_the_key_of_one_picture_is_the_one_that_older_files_hold() -> None:
    # By the formula of the first release: vectors on disk are joined by it.
    parts = b"a" + b"find" + hashlib.sha256(b"p").digest()
    expected = hashlib.sha256(b"1 4 32 " + parts).digest()[:16]
    assert content_key("a", b"p", "find") == content_key("a", None, "find", [b"p"]) == expected
    assert document_key(Content("a", b"p")) == hashlib.sha256(b"a\0p").digest()[:8]


def test_several_pictures_have_a_key_for_each_order_and_number_and_none_of_one_picture_or_text() -> None:
    pictures = [b"p", b"q"]
    rows = [list(chosen) for count in range(4) for chosen in itertools.product(pictures, repeat=count)]
    digests = "".join(hashlib.sha256(picture).hexdigest() for picture in pictures)
    keys = [content_key(text, None, None, images) for images in rows for text in ("a", "", digests)]
    keys += [content_key("a", b"pq", None), content_key("a", hashlib.sha256(b"p").digest(), None)]
    assert len(set(keys)) == len(keys) == 3 * (1 + 2 + 4 + 8) + 2


def test_documents_of_several_pictures_are_equal_by_text_bytes_and_order() -> None:
    contents = [Content("a", images=images) for images in [(b"p", b"q"), (b"q", b"p"), (b"p", b"p"), (b"pq",)]]
    contents += [Content("b", images=(b"p", b"q")), Content(images=(b"p", b"q")), Content("a")]
    keys = [document_key(content) for content in contents]
    assert len(set(keys)) == len(keys) and {len(key) for key in keys} == {8}
    assert document_key(Content("a", images=[b"p", b"q"])) == keys[0]
