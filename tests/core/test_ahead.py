"""Items made ahead: the same, in order, with their errors, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mme5core.ahead import ahead, side_by_side


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


def test_little_is_fetched_ahead_of_a_slow_caller_where_the_items_are_large() -> None:
    begun: list[int] = []

    def work(number: int) -> bytes:
        begun.append(number)
        return bytes(1000)

    items = side_by_side(
        work, range(20), is_slow=lambda size: True, at_once=2, waiting=20, size_of=len, most_bytes=1500
    )
    assert len(next(items)) == 1000
    time.sleep(0.1)
    # One was given out. Two wait, and one more may have begun before the second of these was done.
    assert 3 <= len(begun) <= 4
    assert [len(item) for item in items] == [1000] * 19
    assert sorted(begun) == list(range(20))


def test_a_caller_that_leaves_while_items_wait_for_room_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    items = side_by_side(bytes, [1000] * 20, is_slow=bool, at_once=2, waiting=20, size_of=len, most_bytes=500)
    assert len(next(items)) == 1000
    items.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
