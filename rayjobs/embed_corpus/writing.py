"""Writes the parts: each as soon as all of its contents are done, beside the embedding, and the others at the end."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from mme5core.corpus.contents import Contents
from mme5core.corpus.vector_log import VectorPlaces
from mme5core.corpus.vector_parts import PartRange, WriteVectors, part_item
from mme5core.parts import Part, PartFiles
from mme5core.progress import Progress
from mme5core.tasks import Item, Runner

STOP_S = 5.0
"""For the thread to end after a failure or a signal; what it was writing is written again by the next run."""


class PartWriter:
    """
    Args:
        task: whose `log` grows with `places`.
        may_publish: called before a part goes into the output; it raises where another run owns that by now.
        calibration: names the calibration of int8 codes, of which parts are made too; empty for none.
    """

    def __init__(
        self,
        files: PartFiles,
        ranges: Sequence[PartRange],
        contents: Contents,
        places: VectorPlaces,
        task: WriteVectors,
        run: Runner,
        *,
        may_publish: Callable[[], None],
        calibration: str = "",
    ) -> None:
        self._files, self._ranges, self._contents, self._places = files, ranges, contents, places
        self._task, self._run, self._calibration = task, run, calibration
        self._may_publish = may_publish
        self.parts: dict[int, Part] = files.written([self._item(number) for number in range(len(ranges))])
        self._next = 0
        self._ready: queue.Queue[int | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write_ready, daemon=True)
        self._is_over = threading.Event()
        self._failure: BaseException | None = None

    def __enter__(self) -> PartWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._is_over.set()
        self._ready.put(None)
        self._thread.join(timeout=None if error is None else STOP_S)

    def write_finished(self) -> None:
        """Have those parts written, beside what goes on here, whose contents are all done."""
        if self._failure is not None:
            raise self._failure
        while self._next < len(self._ranges) and self._ranges[self._next].num_contents <= self._places.prefix:
            self._ready.put(self._next)
            self._next += 1

    def write_rest(self) -> list[Part]:
        """Write what is left, with what there is; all parts in their order."""
        if self._failure is not None:
            raise self._failure
        self._places.flush()
        items = [item for item in map(self._item, range(len(self._ranges))) if self._is_missing(item)]
        with Progress("embed-corpus: writing", 0, "rows", done=self._num_rows()) as progress:
            for part in self._files.write(self._task, items, self._run):
                self._take(part)
                progress.update(self._num_rows())
        return [self.parts[number] for number in range(len(self._ranges))]

    def _write_ready(self) -> None:
        try:
            while numbers := self._take_ready():
                items = [item for item in map(self._item, numbers) if self._is_missing(item)]
                if items:
                    self._places.flush()
                for part in self._files.write(self._task, items, self._run):
                    self._take(part)
                    if self._is_over.is_set():
                        return
        except BaseException as error:  # raised where the job waits
            self._failure = error

    def _take_ready(self) -> list[int]:
        """All parts that are final by now, at least one; empty once there are no more."""
        numbers = [self._ready.get()]
        with contextlib.suppress(queue.Empty):
            while numbers[-1] is not None:
                numbers.append(self._ready.get_nowait())
        if numbers[-1] is None:
            self._ready.put(None)  # for the next call
        return [] if self._is_over.is_set() else [number for number in numbers if number is not None]

    def _take(self, part: Part) -> None:
        """A part without pending rows is final, and goes into the output at once."""
        if not part.report["pending"]:
            self._may_publish()
            part = self._files.publish(part)
        self.parts[part.number] = part

    def _item(self, number: int) -> Item:
        return part_item(number, self._ranges[number], self._contents, self._places.places, self._calibration)

    def _is_missing(self, item: Item) -> bool:
        part = self.parts.get(item["part"])
        return part is None or part.report["made_from"] != item["made_from"]

    def _num_rows(self) -> int:
        return sum(part.report["kept"] for part in self.parts.values())
