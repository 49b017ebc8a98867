"""Preparing items in a thread, while the caller processes the ones before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import Full, Queue
from threading import Condition, Event, Thread
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
_END = object()
FETCHES_AT_ONCE, FETCHED_AHEAD, FETCHED_BYTES = 16, 64, 1 << 28
"""Of `side_by_side`, for files that are fetched from servers."""


def ahead(items: Iterable[T], *, depth: int = 2) -> Iterator[T]:
    """The same items in the same order; a thread computes up to `depth` of them before the caller takes them.

    An error in `items` is raised in the place of the item that failed. If the caller stops early, the thread ends.

    >>> list(ahead(range(5)))
    [0, 1, 2, 3, 4]
    """
    ready: Queue[object] = Queue(maxsize=depth)
    stopped = Event()
    failure: list[BaseException] = []

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            failure.append(error)
        put(_END)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            yield item  # type: ignore[misc]
        if failure:
            raise failure[0]
    finally:
        stopped.set()
        thread.join()


class _Room:
    """Bytes of results that wait to be taken: work begins while they are not above a limit.

    The item that the caller waits for always has room. Threads that wait for room may get it in any order.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._held, self._awaited, self._is_closed = most_bytes, 0, -1, False
        self._changed = Condition()

    def enter(self, number: int) -> None:
        """
        Raises:
            CancelledError: nobody takes results any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._held <= self._most_bytes or number == self._awaited or self._is_closed)
            if self._is_closed:
                raise CancelledError

    def hold(self, num_bytes: int) -> None:
        with self._changed:
            self._held += num_bytes
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        """Note that the caller waits for an item."""
        with self._changed:
            self._awaited = number
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def side_by_side(
    work: Callable[[T], U],
    items: Iterable[T],
    *,
    is_slow: Callable[[T], bool],
    at_once: int,
    waiting: int,
    size_of: Callable[[U], int] = lambda result: 0,
    most_bytes: int = 0,
) -> Iterator[U]:
    """`map(work, items)` in its order; of the slow items up to `at_once` are worked on at a time, in threads.

    Args:
        waiting: most items, slow or not, that are taken before the first of them is done.
        size_of, most_bytes: no slow item is begun while the results that wait have more bytes than this together.

    >>> list(side_by_side(abs, [-2, 3, -1], is_slow=lambda item: item < 0, at_once=2, waiting=2))
    [2, 3, 1]
    """
    begun: deque[tuple[int, Future[U] | tuple[U]]] = deque()
    room = _Room(most_bytes)

    def in_thread(item: T, number: int) -> U:
        room.enter(number)
        result = work(item)
        room.hold(size_of(result))
        return result

    def first() -> U:
        number, done = begun.popleft()
        if isinstance(done, tuple):
            return done[0]
        room.wait_for(number)
        result = done.result()
        room.hold(-size_of(result))
        return result

    threads = ThreadPoolExecutor(at_once)
    try:
        for number, item in enumerate(items):
            begun.append((number, threads.submit(in_thread, item, number) if is_slow(item) else (work(item),)))
            while begun and (len(begun) >= waiting or isinstance(begun[0][1], tuple)):
                yield first()
        while begun:
            yield first()
    finally:
        room.close()
        threads.shutdown(cancel_futures=True)  # where the caller stops early
