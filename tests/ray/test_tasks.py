"""Tasks on the cluster: what they tell, and what becomes of their errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from rayjobs.cli import JobFailed
from rayjobs.cluster import Item, Runner, connected, in_tasks
from rayjobs.config import ConfigError

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Half:
    """The task: an even number in, its half out; into its folder, where it says what process it was."""

    folder: Path

    def __call__(self, item: Item) -> Item:
        number = item["number"]
        if number == -1:
            raise ConfigError("'number' is negative")
        if number == -2:
            (self.folder / "is" / "not" / "there").touch()
        if number == -3:
            raise OSError(28, "No space left on device")
        if number == -4:
            pa.array(["a"]).cast(pa.int32())
        (self.folder / f"{number}").write_text(str(os.getpid()))
        return {"half": number // 2}


@pytest.fixture(scope="module")
def run(token: None) -> Iterator[Runner]:
    with connected() as ray:
        yield in_tasks(ray)


def test_every_item_has_a_task_and_every_task_its_answer(run: Runner, tmp_path: Path) -> None:
    told = list(run(Half(tmp_path), [{"number": number} for number in range(0, 12, 2)]))
    assert sorted(one["half"] for one in told) == list(range(6))
    assert str(os.getpid()) not in {file.read_text() for file in tmp_path.iterdir()}


def test_without_an_item_there_is_no_task(run: Runner, tmp_path: Path) -> None:
    assert list(run(Half(tmp_path), [])) == []


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (-1, ConfigError, "^'number' is negative$"),
        (-2, JobFailed, "{folder}/is/not/there: No such file or directory$"),
        (-3, JobFailed, "{folder}: No space left on device$"),
        (-4, JobFailed, "{folder}: Failed to parse string: 'a'"),
    ],
)
def test_an_error_of_a_task_is_one_of_the_job(
    number: int, kind: type[Exception], said: str, run: Runner, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=said.format(folder=tmp_path)):
        list(run(Half(tmp_path), [{"number": 0}, {"number": number}]))
