"""Items made ahead: the same, in order, with their errors, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mme5core.ahead import ahead


def test_items_come_in_order_and_the_thread_ends() -> None:
    before = threading.active_count()
    assert list(ahead(iter(range(100)), depth=3)) == list(range(100))
    assert list(ahead([])) == []
    assert threading.active_count() == before


def test_an_error_comes_where_its_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("the third")

    found = []
    with pytest.raises(ValueError, match="the third"):
        for item in ahead(items()):
            found.append(item)
    assert found == [1, 2]


def test_no_more_is_made_ahead_than_asked_for_and_nothing_after_the_caller_has_left() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    before = threading.active_count()
    iterator = ahead(items(), depth=2)
    assert next(iterator) == 0
    iterator.close()  # type: ignore[attr-defined]
    assert len(made) <= 5  # the one taken, two ready, one in hand, one being made
    assert threading.active_count() == before
