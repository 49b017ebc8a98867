"""`synth` killed in each of its phases, whole or in part: the rows of an unbroken run, and nothing paid for twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mme5core.demo.teacher import DemoTeacher, Faults, Knowledge
from tests.ray.conftest import (
    World,
    adds_up,
    command,
    kill_tree,
    kill_when,
    other_raylet,
    read_parts,
    run_job,
    synth_args,
    wait_for,
    workers_of,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SAMPLES_PER_IMAGE, CONCURRENCY = 15, 8


def args(world: World, teacher: DemoTeacher, output: Path) -> list[str]:
    more = [f"samples_per_image={SAMPLES_PER_IMAGE}", f"teacher.concurrency={CONCURRENCY}", "num_workers=2"]
    return [*synth_args(world, teacher, output), *more]


def num_answers(output: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in output.glob("_work/answers/*.answers"))


def is_in(phase: str, output: Path) -> Callable[[], bool]:
    """Whether a run has begun a phase, and done some of it."""
    work, before = output / "_work", num_answers(output)
    return {
        "reading": lambda: (work / "index").exists(),
        "planning": lambda: (work / "index" / "totals.json").exists(),
        "asking": lambda: num_answers(output) >= before + 100,
        # A part is being written: none has been reported yet.
        "finalising": lambda: bool(list(work.glob("parts/*.parquet"))) and not list(work.glob("parts/report-*")),
    }[phase]


@pytest.fixture(scope="module")
def unbroken(world: World, knowledge: Knowledge, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("unbroken") / "out"
    with DemoTeacher(knowledge) as teacher:
        ended = run_job("synth", *args(world, teacher, output))
        assert ended.code == 0, ended.stderr
        assert teacher.served.requests == len(teacher.served.answered)
    rows = read_parts(output)
    assert len(rows) > 300  # each of the runs is killed in the middle of them
    return rows


def is_equal(output: Path, unbroken: list[dict[str, Any]], teacher: DemoTeacher, *, num_kills: int) -> None:
    adds_up(output)
    assert read_parts(output) == unbroken
    answered_again = sum(count - 1 for count in teacher.served.answered.values())
    print(f"answered twice: {answered_again}")
    assert answered_again <= num_kills * 2 * CONCURRENCY


@pytest.mark.parametrize("driver_only", [False, True])
@pytest.mark.parametrize("phase", ["planning", "asking", "finalising"])
def test_a_run_killed_twice_goes_on_where_it_was(
    phase: str,
    driver_only: bool,
    world: World,
    knowledge: Knowledge,
    unbroken: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    with DemoTeacher(knowledge, Faults(delay_s=0.02)) as teacher:
        for turn in (1, 2):
            shutil.rmtree(output / "_work" / "parts", ignore_errors=True)  # of the kill before
            ready = is_in(phase, output)
            kill_when("synth", *args(world, teacher, output), ready=ready, driver_only=driver_only, every_s=0.01)
            assert not (output / "_SUCCESS").exists()
            print(f"{phase}, kill {turn}: {num_answers(output)} answers, {teacher.served.requests} requests")
            if phase == "planning":
                assert not teacher.served.requests
            elif phase == "finalising":
                assert num_answers(output) == teacher.served.requests
        ended = run_job("synth", *args(world, teacher, output))
        assert ended.code == 0, ended.stderr
        is_equal(output, unbroken, teacher, num_kills=2 if phase == "asking" else 0)


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        ("reading", "ray::ScanShard"),
        ("asking", "ray::MapWorker"),
        ("asking", "ray::RateLimiterActor"),
        ("finalising", "ray::WriteSamples"),
    ],
)
def test_a_killed_actor_or_task_is_made_up_for_by_the_run_itself(
    phase: str, name: str, world: World, knowledge: Knowledge, unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with DemoTeacher(knowledge, Faults(delay_s=0.02)) as teacher:
        with started(world, teacher, output) as process:
            for _ in range(2):
                ready = is_in(phase, output)
                wait_for(process, lambda: ready() and killed_one(process.pid, name), every_s=0.01)  # noqa: B023
            ends_well(process)
        is_equal(output, unbroken, teacher, num_kills=2)


def test_a_killed_node_is_made_up_for_by_the_others(
    two_nodes: Any, world: World, knowledge: Knowledge, unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with DemoTeacher(knowledge, Faults(delay_s=0.02)) as teacher:
        with started(world, teacher, output, env={"RAY_ADDRESS": two_nodes.address}) as process:
            raylet, ready = other_raylet(two_nodes), is_in("asking", output)
            wait_for(process, lambda: ready() and bool(workers_of(raylet, "ray::MapWorker")), every_s=0.01)
            kill_tree(raylet)
            ends_well(process)
        is_equal(output, unbroken, teacher, num_kills=1)


@pytest.mark.parametrize("driver_only", [False, True])
def test_a_run_killed_twice_while_its_batches_are_with_the_server_takes_them_up(
    driver_only: bool, world: World, knowledge: Knowledge, unbroken: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    more = [f"output={output}", "teacher.batch_size=64", "teacher.batch_poll_s=0.2"]
    with DemoTeacher(knowledge, Faults(batch_s=4.0)) as teacher:
        for _ in range(2):
            before = len(list(output.glob("_work/batches/*.json")))
            kill_when(
                "synth",
                *args(world, teacher, output),
                *more,
                ready=lambda: len(list(output.glob("_work/batches/*.json"))) > before,  # noqa: B023
                driver_only=driver_only,
                every_s=0.01,
            )
        ended = run_job("synth", *args(world, teacher, output), *more)
        assert ended.code == 0, ended.stderr
        is_equal(output, unbroken, teacher, num_kills=0)


def started(
    world: World, teacher: DemoTeacher, output: Path, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("synth", *args(world, teacher, output)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (env or {}),
    )


def killed_one(pid: int, name: str) -> bool:
    """Kill a process of Ray below another whose title has `name`; False where there is none, or none any more."""
    for worker in workers_of(pid, name):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
            return True
    return False


def ends_well(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert json.loads(out.splitlines()[-1])["code"] == 0
