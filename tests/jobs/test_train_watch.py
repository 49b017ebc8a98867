"""What `train` shows of its processes' log: from the first step of this run on, whatever of the log is visible yet."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from mme5core.progress import Progress
from mme5core.training.run_files import LOG, SUMMARY
from rayjobs.folder import JobFolder, Run
from rayjobs.training.watch import _Watch, read_summary


def line(step: int, **more: Any) -> str:
    return json.dumps({"step": step, "loss": 1.0 / step, "rows": 8, "seconds": 0.5} | more) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path, Run("train", {}, "f", {}, {}))
    folder.work.mkdir()
    (tmp_path / LOG).parent.mkdir()
    return folder


def begin(folder: JobFolder, first_step: int, passed_over: tuple[str, ...] = ()) -> None:
    summary = {"adapted_layers": ["a.q_proj"], "trained_weights": [], "trainable_parameters": 1, "parameters": 2}
    (folder.work / SUMMARY).write_text(json.dumps(summary | {"first_step": first_step, "passed_over": passed_over}))


def watch_of(folder: JobFolder) -> tuple[_Watch, io.StringIO, Progress]:
    stream = io.StringIO()
    progress = Progress("train", 9, "steps", stream=stream)
    return _Watch(folder, progress, "train"), stream, progress


def test_a_fresh_run_goes_on_nowhere(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    watch, _, progress = watch_of(folder)
    watch()
    begin(folder, 0)
    (folder.path / LOG).write_text(line(1) + line(2))
    watch()
    assert progress.line().startswith("train: 2 of 9")
    assert "going on" not in capsys.readouterr().err


def test_a_resumed_run_says_where_it_goes_on_and_what_it_passed_over(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.path / LOG).write_text(line(1) + line(2) + line(3))
    watch, _, progress = watch_of(folder)
    watch()
    (folder.path / LOG).write_text(line(1) + line(2))
    begin(folder, 2, ("checkpoint c/step-00000003 cannot be used",))
    watch()
    assert progress.line().startswith("train: 2 of 9")
    with (folder.path / LOG).open("a") as log:
        log.write(line(3))
    watch()
    assert progress.line().startswith("train: 3 of 9")
    said = capsys.readouterr().err
    assert "train: checkpoint c/step-00000003 cannot be used\n" in said and "going on after step 2" in said


def test_lines_that_are_half_visible_or_no_steps_end_nothing(folder: JobFolder) -> None:
    begin(folder, 0)
    watch, _, progress = watch_of(folder)
    text = (line(1) + "7\n{}\nnull\n\x00\x00\n" + line(2)).encode() + b"\xff\n" + line(3).encode()
    for end in range(len(text) + 1):
        (folder.path / LOG).write_bytes(text[:end])
        watch()
    assert progress.line().startswith("train: 3 of 9")
    (folder.path / LOG).write_text(line(1))  # cut back to a checkpoint
    watch()
    (folder.path / LOG).unlink()
    watch()


def test_each_byte_of_the_log_is_read_once(folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(folder, 0)
    watch, _, _ = watch_of(folder)
    seen: list[int] = []
    monkeypatch.setattr("rayjobs.training.watch.whole_lines", lambda text: seen.append(len(text)) or [])
    for step in range(1, 30):
        with (folder.path / LOG).open("a") as log:
            log.write(line(step))
        watch()
    assert sum(seen) == (folder.path / LOG).stat().st_size


def test_a_skipped_step_is_said_once_and_counted(folder: JobFolder, capsys: pytest.CaptureFixture[str]) -> None:
    begin(folder, 0)
    watch, _, _ = watch_of(folder)
    (folder.path / LOG).write_text(line(1) + line(2, is_skipped=True) + line(3))
    watch()
    (folder.path / LOG).write_text(line(1))
    watch()
    (folder.path / LOG).write_text(line(1) + line(2, is_skipped=True) + line(3))
    watch()
    assert capsys.readouterr().err.count("step 2 is skipped: its gradient is NaN or infinite") == 1
    assert read_summary(folder)["training"]["skipped_steps"] == 1


@pytest.mark.parametrize("cut", [0, 40, None])
def test_the_summary_of_a_cut_or_lost_log_is_that_of_its_whole_lines(folder: JobFolder, cut: int | None) -> None:
    begin(folder, 0)
    text = line(1) + line(2) + line(4)
    if cut is not None:
        (folder.path / LOG).write_text(text[: len(text) - cut])
    training = read_summary(folder)["training"]
    assert training.get("last_loss") == {0: 0.25, 40: 0.5, None: None}[cut]
    assert "first_step" not in training and training["parameters"] == 2
