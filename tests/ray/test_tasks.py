"""Tasks on the cluster: what they report, and what becomes of their errors."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mme5core.errors import InputError, WorkFailed
from mme5core.tasks import Item
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.tasks import run_on_ray

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Half:
    """The task: an even number in, its half out, after a first report; it leaves a file in its folder."""

    folder: Path

    def __call__(self, item: Item) -> Iterator[Item]:
        number = item["number"]
        yield {"begun": number}
        if number == -1:
            raise InputError("'number' is negative")
        if number == -2:
            (self.folder / "is" / "not" / "there").touch()
        if number == -3:
            raise OSError(28, "No space left on device")
        if number == -5:
            raise WorkFailed("a store is away")
        if number == -4:
            pa.array(["a"]).cast(pa.int32())
        (self.folder / f"{number}").touch()
        yield {"half": number // 2}


def run_all(folder: Path, outcomes: Any) -> None:
    """What comes of some lists of numbers: the reports of the tasks, or the error's type and message."""
    with connected():
        for numbers in CASES:
            try:
                reports = list(run_on_ray(Half(folder), [{"number": number} for number in numbers]))
                begun = [report["begun"] for report in reports if "begun" in report]
                halves = [report["half"] for report in reports if "half" in report]
                outcomes.put((sorted(begun), sorted(halves)))
            except (InputError, WorkFailed) as error:
                outcomes.put((type(error), str(error)))


CASES = ([], [*range(0, 40, 2)], [0, -1], [0, -2], [0, -3], [0, -4], [0, -5])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The tasks' folder, and what came of each case, in a process of its own: Ray reads its token once in one."""
    folder, context = tmp_path_factory.mktemp("halves"), multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=run_all, args=(folder, queue))
    process.start()
    outcomes = [queue.get(timeout=120) for _ in CASES]
    process.join(timeout=60)
    return folder, outcomes


def test_every_item_has_a_task_and_every_report_comes_once(outcomes: tuple[Path, list[Any]]) -> None:
    folder, (_, (begun, halves), *_) = outcomes
    assert begun == list(range(0, 40, 2)) and halves == list(range(20))  # more than wait at once
    assert len(list(folder.iterdir())) == 20


def test_without_an_item_there_is_no_task(outcomes: tuple[Path, list[Any]]) -> None:
    assert outcomes[1][0] == ([], [])


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (-1, InputError, "^'number' is negative$"),
        (-2, WorkFailed, "^{folder}/is/not/there: No such file or directory$"),
        (-3, WorkFailed, "^{folder}: No space left on device$"),
        (-5, WorkFailed, "^a store is away$"),
        (-4, WorkFailed, "^{folder}: Failed to parse string: 'a'"),
    ],
)
def test_an_error_of_a_task_is_one_of_the_job(
    number: int, kind: type[Exception], said: str, outcomes: tuple[Path, list[Any]]
) -> None:
    folder, of_cases = outcomes
    raised, message = of_cases[CASES.index([0, number])]
    assert raised is kind and re.search(said.format(folder=folder), message)
