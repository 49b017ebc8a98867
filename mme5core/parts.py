"""The files of an output in parts, each written by a task, and taken as it is by a run that goes on."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.durable import sync_file, wait_until_seen, write_json
from mme5core.file_entries import FileEntry, describe, has_file
from mme5core.schemas import QUARANTINE
from mme5core.tasks import Item, Runner, Task
from mme5core.types import Rejected


def part_name(number: int) -> str:
    """
    >>> part_name(7)
    'part-00007.parquet'
    """
    return f"part-{number:05d}.parquet"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the output and the file of what it refused, as their task has reported them.

    Args:
        report: of the task: the item, its counts, and the entries of both files.
        file, refusals: where they lie; the part may be in the output already.
    """

    report: dict[str, Any]
    file: Path
    refusals: Path

    @property
    def number(self) -> int:
        return int(self.report["part"])

    @property
    def entry(self) -> FileEntry:
        """What the manifest says of the part."""
        return self.report["file"] | {"name": part_name(self.number)}

    def refused(self) -> Iterator[Rejected]:
        for row in pq.read_table(self.refusals).to_pylist():
            yield Rejected(**row)


class PartFiles:
    """Parts on their way into an output.

    An item has the number of its "part", and under "made_from" what the part follows from: a part that was written from
    the same is taken as it is. Its task writes both files with `NewPart`.

    Args:
        folder: where tasks write; shared by all nodes.
        output: where the parts go in the end.
    """

    def __init__(self, folder: Path, output: Path) -> None:
        self._folder, self._output = folder, output
        folder.mkdir(exist_ok=True)

    def written(self, items: Sequence[Item]) -> dict[int, Part]:
        """The parts that an earlier run has written from the same, by their numbers.

        All else in the folder is removed: tasks of a killed run may have left it, or may be writing it still.
        """
        parts = {}
        for item in items:
            if (part := self._written(item)) is not None:
                parts[part.number] = part
        self._clear(parts.values())
        return parts

    def write(self, task: Task, items: Sequence[Item], run: Runner) -> Iterator[Part]:
        """Write the parts of some items; they come in any order.

        Raises:
            WorkFailed: this machine does not see what the tasks have written.
        """
        return self.take(run(task, items))

    def take(self, reports: Iterable[Item]) -> Iterator[Part]:
        """The parts that somebody has written into the folder with `NewPart`, by their reports.

        Raises:
            WorkFailed: this machine does not see them.
        """
        for report in reports:
            part = Part(report, self._folder / report["file"]["name"], self._folder / report["refusals"]["name"])
            files = {part.file.name, part.refusals.name}
            wait_until_seen(lambda: files <= {file.name for file in self._folder.iterdir()}, self._folder)  # noqa: B023
            write_json(self._folder / _report_name(part.number), report)
            yield part

    def publish(self, part: Part) -> Part:
        """Put a part into the output at once; it is final."""
        published = replace(part, file=self._output / part_name(part.number))
        part.file.rename(published.file)
        return published

    def _written(self, item: Item) -> Part | None:
        try:
            report: dict[str, Any] = json.loads((self._folder / _report_name(item["part"])).read_text())
        except (FileNotFoundError, ValueError):
            return None
        if report.get("made_from") != item["made_from"] or not has_file(self._folder, report["refusals"]):
            return None
        refusals = self._folder / report["refusals"]["name"]
        if has_file(self._folder, report["file"]):
            return Part(report, self._folder / report["file"]["name"], refusals)
        part = Part(report, self._output / part_name(item["part"]), refusals)
        return part if has_file(self._output, part.entry) else None

    def _clear(self, parts: Collection[Part]) -> None:
        kept = {_report_name(part.number) for part in parts}
        kept |= {file.name for part in parts for file in (part.file, part.refusals)}
        for file in self._folder.iterdir():
            if file.name not in kept:
                with contextlib.suppress(OSError):  # a task may be writing it; a shared file system may hold it
                    file.unlink()


class NewPart:
    """A part while a task writes it, and what it refuses.

    Args:
        writer: takes tables of the part's rows.
        refused: appended to; written at the end.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        # Named by chance: a task may run twice at once, and may outlive its job.
        name = uuid.uuid4().hex
        self._folder = folder
        self._file, self._refusals = folder / f"{name}.parquet", folder / f"{name}-refused.parquet"
        self.writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        self.refused: list[Rejected] = []

    def close(self) -> Item:
        """The entries of both files, once they are on the disk."""
        self.writer.close()
        rows = [{"id": row.id, "reason": row.reason, "detail": row.detail} for row in self.refused]
        pq.write_table(pa.Table.from_pylist(rows, QUARANTINE), self._refusals)
        entries = {}
        for name, file in (("file", self._file), ("refusals", self._refusals)):
            sync_file(file)
            entries[name] = describe(file, self._folder)
        return entries

    def __enter__(self) -> NewPart:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer.is_open:  # the task failed
            with contextlib.suppress(OSError, ValueError):
                self.writer.close()
            self._file.unlink(missing_ok=True)


def _report_name(number: int) -> str:
    return f"report-{number:05d}.json"
