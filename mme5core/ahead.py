"""Preparing items in a thread, while the caller processes the ones before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
_END = object()
FETCHES_AT_ONCE, FETCHED_AHEAD = 16, 64
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


def side_by_side(
    work: Callable[[T], U], items: Iterable[T], *, is_slow: Callable[[T], bool], at_once: int, waiting: int
) -> Iterator[U]:
    """`map(work, items)` in its order; of the slow items up to `at_once` are worked on at a time, in threads.

    Args:
        waiting: most items, slow or not, that are taken before the first of them is done.

    >>> list(side_by_side(abs, [-2, 3, -1], is_slow=lambda item: item < 0, at_once=2, waiting=2))
    [2, 3, 1]
    """
    begun: deque[Future[U] | tuple[U]] = deque()

    def first() -> U:
        done = begun.popleft()
        return done[0] if isinstance(done, tuple) else done.result()

    threads = ThreadPoolExecutor(at_once)
    try:
        for item in items:
            begun.append(threads.submit(work, item) if is_slow(item) else (work(item),))
            while begun and (len(begun) >= waiting or isinstance(begun[0], tuple)):
                yield first()
        while begun:
            yield first()
    finally:
        threads.shutdown(cancel_futures=True)  # where the caller stops early
