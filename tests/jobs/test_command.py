"""The command line that all jobs share: exit codes, the summary line, help, and what people see of a failure."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import BaseModel

from mme5core.errors import InputError, WorkFailed, WorkPending
from mme5core.images import to_jpeg
from rayjobs.command import signals
from rayjobs.command.job import Job, Verb, preview_nothing
from rayjobs.command.main import main
from rayjobs.command.outcome import RESUMABLE, Outcome, Stopped
from rayjobs.command.signals import stop_at_once, stopping_softly
from rayjobs.synth.config import GalleryConfig, SynthConfig
from rayjobs.synth.preview import preview
from tests.jobs.every_job import every_job

ARGUMENTS = ["input=pictures", "output=rows"]
Work = Callable[[Any], Outcome]


@pytest.fixture(autouse=True)
def _clean_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traceback files go to the test's own folder; the signal handler that a job sets is taken back."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def synth(**verbs: Work) -> Job:
    """`synth` with other work; `job` is that of the job itself."""
    table = {
        "" if name == "job" else name: Verb(
            GalleryConfig if name == "gallery" else SynthConfig,
            work,
            preview if name == "job" else preview_nothing,
            needs_output=name == "job",
        )
        for name, work in verbs.items()
    }
    return Job("synth", table)


def run(job: Work, argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, summary and stderr of `synth` with `job` as its work."""
    with pytest.raises(SystemExit) as ended:
        main(synth(job=job, export=job), argv)
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert list(summary) == ["job", "code", "reason", "output", "counters"]
    assert summary["job"] == "synth" and summary["code"] == ended.value.code
    return int(ended.value.code or 0), summary, err


def never(config: Any) -> Outcome:
    raise AssertionError("the job must not have started")


def leaf_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaf_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description or ""


def test_a_finished_job_ends_with_0_and_its_summary_as_the_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def job(config: Any) -> Outcome:
        print("a line of the job's own")
        return Outcome({"read": 3, "kept": 2, "refused": {"broken_image": 1}, "pending": 0})

    code, summary, err = run(job, ARGUMENTS, capsys)
    assert (code, summary["reason"], err) == (0, "done", "")
    assert summary["output"] == str(tmp_path / "rows")
    assert summary["counters"] == {"read": 3, "kept": 2, "refused": {"broken_image": 1}, "pending": 0}


def test_a_job_that_stops_at_a_limit_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome({"pending": 7}, RESUMABLE, "the budget is spent")
    code, summary, _ = run(lambda config: outcome, ARGUMENTS, capsys)
    assert (code, summary["reason"], summary["counters"]) == (3, "the budget is spent", {"pending": 7})


def test_sigterm_and_ctrl_c_end_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    def terminated(config: Any) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        return Outcome()

    def interrupted(config: Any) -> Outcome:
        raise KeyboardInterrupt

    assert run(terminated, ARGUMENTS, capsys)[0] == 3
    assert run(interrupted, ARGUMENTS, capsys)[0] == 3


def test_a_failure_for_people_ends_with_1_and_bad_input_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> Work:
        def job(config: Any) -> Outcome:
            raise error

        return job

    code, summary, err = run(fail(WorkFailed("the cluster is gone")), ARGUMENTS, capsys)
    assert (code, summary["reason"], err) == (1, "the cluster is gone", "synth: the cluster is gone\n")
    code, summary, _ = run(fail(WorkPending("2 pictures could not be reached")), ARGUMENTS, capsys)
    assert (code, summary["reason"]) == (RESUMABLE, "2 pictures could not be reached")
    code, summary, err = run(fail(InputError("no column 'id'")), ARGUMENTS, capsys)
    assert (code, summary["reason"], err) == (2, "no column 'id'", "synth: no column 'id'\n")


def test_an_unforeseen_error_becomes_one_line_and_a_file_with_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(config: Any) -> Outcome:
        raise ValueError("seven is no colour\nand a second line")

    code, _, err = run(job, ARGUMENTS, capsys)
    assert code == 1 and len(err.splitlines()) == 1
    assert "ValueError: seven is no colour" in err and "Traceback" not in err
    (kept,) = tmp_path.glob("*.traceback")
    assert str(kept) in err and "Traceback" in kept.read_text() and "second line" in kept.read_text()


def test_a_full_disk_becomes_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: Any) -> Outcome:
        # Opened without O_CREAT: where there is no such device the test must not make a file of that name.
        os.write(os.open("/dev/full", os.O_WRONLY), b"rows")
        return Outcome()

    code, summary, err = run(job, ARGUMENTS, capsys)
    assert code == 1 and len(err.splitlines()) == 1
    assert "no space left" in err and summary["output"] in err and "unexpected" not in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["input=a"], ["'output'"]),
        (["output=b"], ["'input'"]),
        ([*ARGUMENTS, "sampels_per_image=3"], ["'sampels_per_image'", "'samples_per_image'"]),
        (["exprot", *ARGUMENTS], ["'exprot'", "export"]),
        ([*ARGUMENTS, "export"], ["'export'"]),
        ([*ARGUMENTS, "--dry-rnu"], ["'--dry-rnu'", "--dry-run"]),
        ([*ARGUMENTS, "--config"], ["--config", "demo"]),
        ([*ARGUMENTS, "--config", "demmo"], ["'demmo'", "demo"]),
    ],
)
def test_what_cannot_be_read_ends_with_2_before_the_job_starts(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, summary, err = run(never, argv, capsys)
    assert code == 2 and len(err.splitlines()) == 1
    assert all(word in err and word in summary["reason"] for word in words), err


def test_a_verb_is_the_first_word_and_gets_the_same_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    job = synth(job=never, show=lambda config: seen.append(config) or Outcome())
    with pytest.raises(SystemExit):
        main(job, ["show", "--config=demo", "seed=11"])
    assert seen[0].seed == 11 and seen[0].teacher.model == "demo-teacher"
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["code"] == 0


def test_a_verb_with_keys_of_its_own_reads_what_the_recipes_job_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    job = synth(job=never, gallery=lambda config: seen.append(config) or Outcome())
    with pytest.raises(SystemExit):
        main(job, ["gallery", "--config=mme5", "num_samples=3"])
    assert (seen[0].input, seen[0].output, seen[0].num_samples) == ("runs/mme5/synth", "", 3)
    with pytest.raises(SystemExit) as ended:
        main(job, ["gallery", "input=x", "num_sample=3"])
    assert ended.value.code == 2
    assert "num_samples" in json.loads(capsys.readouterr().out.splitlines()[-1])["reason"]
    with pytest.raises(SystemExit):
        main(job, ["--help"])
    assert "keys of synth gallery:" in capsys.readouterr().out


def test_a_dry_run_prints_the_effective_configuration_and_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, color in (("a.jpg", (255, 0, 0)), ("b.jpg", (0, 0, 255))):
            data = to_jpeg(Image.new("RGB", (8, 8), color))
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    argv = [f"input={tmp_path}/*.tar", f"output={tmp_path}/rows", "samples_per_image=37", "teacher.model=some-model"]
    with pytest.raises(SystemExit) as ended:
        main(synth(job=never), [*argv, "--dry-run"])
    *printed, last = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and json.loads(last)["code"] == 0
    text = "\n".join(printed)
    assert "samples_per_image: 37" in text and "some-model" in text and "00000.tar" in text
    assert "74" in text  # 2 pictures x 37 samples
    page = next(line.rpartition(" ")[2] for line in printed if line.startswith("these prompts with their pictures: "))
    assert "You write training samples" in Path(page).read_text() and "data:image/jpeg" in Path(page).read_text()
    Path(page).unlink()
    assert [file.name for file in tmp_path.iterdir()] == ["00000.tar"]


@pytest.mark.parametrize("job", every_job().values(), ids=lambda job: job.name)
def test_help_lists_every_key_with_its_meaning(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(job, ["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert ended.value.code == 0
    for key, description in leaf_keys(job.verbs[""].config):
        place = next(number for number, line in enumerate(lines) if line.split("  (")[0] == key)
        assert description and lines[place + 1] == description
        assert "default" in lines[place] or "required" in lines[place]


def run_module(folder: Path, module: str, *argv: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
    )


def test_help_that_nobody_reads_ends_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rayjobs.synth", "--help"],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # long before it prints: as a pager does that was left
    errors = process.stderr.read()
    assert (process.wait(), errors) == (0, "")


def test_a_misspelt_key_of_the_real_command_ends_with_2(tmp_path: Path) -> None:
    ended = run_module(tmp_path, "rayjobs.synth", "--config", "demo", "sampels_per_image=3")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == ["synth: unknown key 'sampels_per_image'; did you mean 'samples_per_image'?"]
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert (summary["job"], summary["code"], summary["counters"]) == ("synth", 2, {})
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_is_not_there_ends_the_real_command_with_2(tmp_path: Path) -> None:
    ended = run_module(tmp_path, "rayjobs.evaluate", "input=gone.parquet", "benchmark=bench", "output=scores")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "'gone.parquet'" in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert json.loads(ended.stdout.splitlines()[-1])["output"] == str(tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def kill_self(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # a handler runs between two steps of Python


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, stop_at_once)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_soft_stop_is_told_and_raises_nothing(number: int, handlers: None) -> None:
    with stopping_softly(60.0) as is_to_stop:
        assert not is_to_stop.is_set()
        kill_self(number)
        kill_self(number)  # as of one that was sent to the group as well
        assert is_to_stop.is_set()
    with pytest.raises((Stopped, KeyboardInterrupt)):
        kill_self(number)


def test_a_second_stop_is_no_soft_one(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_SIGNAL_S", 0.0)
    with pytest.raises(Stopped), stopping_softly(60.0):
        kill_self()
        kill_self(signal.SIGINT)


@pytest.mark.parametrize("grace_s", [0.0, 0.3])
def test_the_grace_of_a_soft_stop_ends(grace_s: float, handlers: None) -> None:
    started = time.monotonic()
    with pytest.raises(Stopped), stopping_softly(grace_s):
        kill_self()
        time.sleep(5.0)
    assert grace_s <= time.monotonic() - started < 4.0


def test_an_error_after_a_soft_stop_is_of_the_stop(handlers: None, capsys: pytest.CaptureFixture[str]) -> None:
    for is_stopped in (False, True):
        with pytest.raises(Stopped if is_stopped else RuntimeError), stopping_softly(60.0):
            if is_stopped:
                kill_self()
            raise RuntimeError("an actor died")
    assert capsys.readouterr().err == "while stopping: an actor died\n"


def test_a_signal_that_is_ignored_stays_so(handlers: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping_softly(60.0) as is_to_stop:
        kill_self(signal.SIGINT)
        assert not is_to_stop.is_set()
