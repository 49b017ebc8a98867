"""`synth` as a user runs it: against the demo teacher, killed, faulty, without a teacher."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from mme5core.demo.benchmark import held_out_languages
from mme5core.demo.teacher import DemoTeacher, Faults, Knowledge
from tests.ray.conftest import Ended, World, adds_up, command, kill_when, read_parts, run_job, synth_args, wait_for

pytestmark = pytest.mark.ray


def test_every_planned_sample_is_kept_or_refused_and_all_seven_combinations_occur(samples: Path, world: World) -> None:
    counters = adds_up(samples)
    num_failed = sum(world.corpus.refused.values())
    assert counters["read"] == 3 * (len(world.corpus.pictures) + num_failed)
    assert counters["refused"]["failed_to_download"] == 3 * num_failed
    rows = read_parts(samples)
    assert {row["modality_combination"] for row in rows} == {"I2T", "IT2T", "T2I", "T2IT", "I2I", "IT2I", "IT2IT"}
    places = {picture.key: place for place, picture in enumerate(world.corpus.pictures)}
    numbers = [(places[key], int(number)) for key, _, number in (row["id"].rpartition("-") for row in rows)]
    assert numbers == sorted(numbers)
    assert all(len(row["negatives"]) == 1 for row in rows)


def test_no_sample_is_in_a_language_that_is_held_out_for_one_of_its_pictures(samples: Path, world: World) -> None:
    held_out = {picture.key: held_out_languages(picture) for picture in world.corpus.pictures}
    rows = read_parts(samples)
    assert rows
    for row in rows:
        for image_id in row["image_ids"]:
            assert row["language"] not in held_out[image_id]


@pytest.mark.slow  # test_synth_kills.py kills it everywhere
def test_a_killed_run_goes_on_and_ends_with_the_rows_of_an_unbroken_one(
    samples: Path, world: World, knowledge: Knowledge, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    with DemoTeacher(knowledge, Faults(delay_s=0.2)) as slow:
        args = [*synth_args(world, slow, output), "samples_per_image=3", "teacher.concurrency=4"]
        kill_when("synth", *args, ready=lambda: num_answers(output) >= 20)
        assert not (output / "_SUCCESS").exists()
        before = slow.served.requests
        slow.faults.delay_s = 0.0
        ended = run_job("synth", *args)
        after = slow.served.requests
    assert ended.code == 0, ended.stderr
    assert _without_time(read_parts(output)) == _without_time(read_parts(samples))
    assert adds_up(output)["read"] == adds_up(samples)["read"]
    planned = adds_up(output)["read"] - adds_up(output)["refused"]["failed_to_download"]
    # Asked twice at most: what was in flight when the job was killed.
    assert before < planned and after <= planned + 4


def test_faults_of_the_teacher_lose_nothing(world: World, knowledge: Knowledge, tmp_path: Path) -> None:
    faults = Faults(rate_429=0.1, rate_500=0.05, rate_cut_off=0.1, rate_malformed=0.1)
    with DemoTeacher(knowledge, faults) as server:
        ended = run_job("synth", *synth_args(world, server, tmp_path / "out"))
        calls = server.served.requests
    assert ended.code == 0, ended.stderr
    counters = adds_up(tmp_path / "out")
    assert counters["refused"]["cut_off"] >= 1 and counters["refused"]["not_json"] >= 1
    assert counters["calls"] == calls


@pytest.mark.slow
def test_a_spent_budget_ends_with_code_3_and_a_raised_one_goes_on(
    world: World, teacher: DemoTeacher, tmp_path: Path
) -> None:
    args = synth_args(world, teacher, tmp_path / "out")
    ended = run_job("synth", *args, "budget.calls=10")
    assert ended.code == 3 and "budget" in ended.summary["reason"]
    assert teacher.served.requests == 10
    counters = ended.summary["counters"]
    assert counters["pending"] == len(world.corpus.pictures) - 10
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert run_job("synth", *args).code == 0
    assert teacher.served.requests == len(world.corpus.pictures)
    again = run_job("synth", *args)
    assert again.code == 0 and again.summary["reason"] == "already done"
    assert teacher.served.requests == len(world.corpus.pictures)


@pytest.mark.slow
def test_a_teacher_that_is_not_there_is_one_line_and_code_3(world: World, tmp_path: Path) -> None:
    ended = run_job(
        "synth",
        f"input={world.tars}",
        f"output={tmp_path / 'out'}",
        "teacher.base_url=http://127.0.0.1:9/v1",
        "teacher.model=x",
        "teacher.max_attempts=2",
    )
    assert ended.code == 3
    assert "cannot reach the teacher" in ended.summary["reason"] and "127.0.0.1:9" in ended.summary["reason"]
    assert ended.summary["counters"]["pending"] == len(world.corpus.pictures)
    assert no_traceback(ended)


def test_the_key_is_in_no_file(world: World, teacher: DemoTeacher, tmp_path: Path) -> None:
    secret = "sk-do-not-write-me-0123456789"
    ended = run_job("synth", *synth_args(world, teacher, tmp_path / "out"), "limit=4", env={"OPENAI_API_KEY": secret})
    assert ended.code == 0, ended.stderr
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()
    assert secret not in ended.stdout + ended.stderr


def num_answers(output: Path) -> int:
    """Lines in the log of a run that is under way."""
    return sum(file.read_bytes().count(b"\n") for file in output.glob("_work/answers/*.answers"))


def no_traceback(ended: Ended) -> bool:
    return "Traceback" not in ended.stderr + ended.stdout


def _without_time(rows: list[dict[str, Any]]) -> list[str]:
    return [json.dumps(row, sort_keys=True, default=lambda value: value.hex()) for row in rows]


def begun(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command("synth", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_sigterm_stops_with_code_3_and_a_summary(world: World, knowledge: Knowledge, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with DemoTeacher(knowledge, Faults(delay_s=0.3)) as slow:
        args = [*synth_args(world, slow, output), "samples_per_image=3", "teacher.concurrency=2"]
        with begun(*args) as process:
            wait_for(process, lambda: num_answers(output) > 0)
            process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=60)
        num_asked = slow.served.requests
    assert process.returncode == 3, stderr
    summary = json.loads(stdout.splitlines()[-1])
    assert summary["code"] == 3 and summary["reason"].startswith("stopped; the same command goes on")
    counters = summary["counters"]
    assert adds_up(output) == counters and counters["pending"] > 0
    assert counters["calls"] == num_asked  # what was in flight was waited for
    assert "Traceback" not in stderr


@pytest.mark.slow
@pytest.mark.parametrize("patience", ["grace", "second"])
def test_a_teacher_that_does_not_answer_holds_no_stop_up(
    patience: str, world: World, knowledge: Knowledge, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with (
        DemoTeacher(knowledge, Faults(delay_s=50.0)) as silent,
        begun(*synth_args(world, silent, output)) as process,
    ):
        wait_for(process, lambda: silent.served.requests > 0)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if patience == "second":
            time.sleep(2.0)
            process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
        assert time.monotonic() - started < (9.0 if patience == "second" else 25.0)
    assert process.returncode == 3, stderr
    assert json.loads(stdout.splitlines()[-1])["code"] == 3 and "Traceback" not in stderr


@pytest.mark.slow
def test_a_cache_that_is_gone_when_the_run_ends_fails_no_run(
    world: World, knowledge: Knowledge, tmp_path: Path
) -> None:
    output, cache = tmp_path / "out", tmp_path / "cache"
    with DemoTeacher(knowledge, Faults(delay_s=0.2)) as slow:
        args = [*synth_args(world, slow, output), "teacher.concurrency=2", f"teacher.cache={cache}"]
        with begun(*args) as process:
            wait_for(process, lambda: num_answers(output) > 0)
            cache.rmdir()
            stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "teacher.cache: this run's answers are not all kept in it" in stderr and "Traceback" not in stderr
    assert adds_up(output)["kept"] == json.loads(stdout.splitlines()[-1])["counters"]["kept"] > 0
