"""Tasks on the cluster: what they tell, and what becomes of their errors."""

from __future__ import annotations

import multiprocessing
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rayjobs.cli import JobFailed
from rayjobs.cluster import Item, connected, in_tasks
from rayjobs.config import ConfigError

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Half:
    """The task: an even number in, its half out; it leaves a file in its folder."""

    folder: Path

    def __call__(self, item: Item) -> Item:
        number = item["number"]
        if number == -1:
            raise ConfigError("'number' is negative")
        if number == -2:
            (self.folder / "is" / "not" / "there").touch()
        if number == -3:
            raise OSError(28, "No space left on device")
        if number == -5:
            raise JobFailed("a store is away")
        if number == -4:
            pa.array(["a"]).cast(pa.int32())
        (self.folder / f"{number}").touch()
        return {"half": number // 2}


def run_all(folder: Path, told: Any) -> None:
    """What comes of some lists of numbers: what the tasks told, or the error's type and message."""
    with connected() as ray:
        run, half = in_tasks(ray), Half(folder)
        for numbers in CASES:
            try:
                answers = list(run(half, [{"number": number} for number in numbers]))
                told.put(sorted(answer["half"] for answer in answers))
            except (ConfigError, JobFailed) as error:
                told.put((type(error), str(error)))


CASES = ([], [*range(0, 12, 2)], [0, -1], [0, -2], [0, -3], [0, -4], [0, -5])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The tasks' folder, and what came of each case, in a process of its own: Ray reads its token once in one."""
    folder, context = tmp_path_factory.mktemp("halves"), multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=run_all, args=(folder, told))
    process.start()
    found = [told.get(timeout=120) for _ in CASES]
    process.join(timeout=60)
    return folder, found


def test_every_item_has_a_task_and_every_task_its_answer(outcomes: tuple[Path, list[Any]]) -> None:
    folder, found = outcomes
    assert found[1] == list(range(6)) and len(list(folder.iterdir())) == 6


def test_without_an_item_there_is_no_task(outcomes: tuple[Path, list[Any]]) -> None:
    assert outcomes[1][0] == []


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (-1, ConfigError, "^'number' is negative$"),
        (-2, JobFailed, "^{folder}/is/not/there: No such file or directory$"),
        (-3, JobFailed, "^{folder}: No space left on device$"),
        (-5, JobFailed, "^a store is away$"),
        (-4, JobFailed, "^{folder}: Failed to parse string: 'a'"),
    ],
)
def test_an_error_of_a_task_is_one_of_the_job(
    number: int, kind: type[Exception], said: str, outcomes: tuple[Path, list[Any]]
) -> None:
    folder, found = outcomes
    assert found[CASES.index([0, number])][0] is kind
    assert re.search(said.format(folder=folder), found[CASES.index([0, number])][1])
