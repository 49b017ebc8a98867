"""The batches that are with a server, each in a file, so that a killed run pays for none of them twice."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mme5core.durable import write_json
from mme5core.errors import InputError


@dataclass(slots=True)
class BatchRecord:
    """A batch that is with the server.

    Written before the batch is sent, with a name that the server keeps too: `batch_id` is None until the server has
    answered, and a run that was killed in between finds the batch by its name.

    Args:
        plan_file: the file of records that the batch is about.
        numbers: of its records.
        mode: the form in which answers are asked for.
    """

    plan_file: int
    numbers: list[int]
    base_url: str
    mode: str
    batch_id: str | None = None
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    made_s: float = field(default_factory=time.time)

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        write_json(self.path(folder), asdict(self))

    def remove(self, folder: Path) -> None:
        self.path(folder).unlink(missing_ok=True)

    def path(self, folder: Path) -> Path:
        return folder / f"{self.plan_file:06d}-{self.name}.json"

    @classmethod
    def of_file(cls, folder: Path, plan_file: int) -> Iterator[BatchRecord]:
        for file in sorted(folder.glob(f"{plan_file:06d}-*.json")):
            yield cls(**json.loads(file.read_text()))


def batch_folder(work: Path) -> Path:
    return work / "batches"


def num_with_server(work: Path) -> int:
    """Calls in batches that an earlier run has sent and whose answers are not in the log yet.

    Raises:
        InputError: a record cannot be read.
    """
    num_calls = 0
    for file in batch_folder(work).glob("*.json"):
        try:
            num_calls += len(json.loads(file.read_text())["numbers"])
        except (ValueError, LookupError, TypeError):
            raise InputError(f"{file}: cannot be read; remove it to pay for its batch again") from None
    return num_calls
