"""Preparing items in a thread, while the caller processes the ones before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
_END = object()


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
