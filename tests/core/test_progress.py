"""What a person sees of a running step, in a log and on a terminal."""

from __future__ import annotations

import io
import time

import pytest

from mme5core.progress import LOG_EVERY_S, Progress, called_every


class Clock:
    """A clock that stands until it is moved; by the real one, rates would not be known."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mme5core.progress.time.monotonic", clock)
    return clock


def test_a_log_line_has_share_rate_and_time_left_and_earlier_runs_do_not_count_for_the_rate(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress("synth", 2_000, "samples", done=500, stream=stream)
    clock.now += 10
    progress.update(800, "3 refused")
    # (800 - 500) / 10 s = 30/s; (2000 - 800) / 30 = 40 s
    assert stream.getvalue() == "synth: 800 of 2,000 samples (40 %), 30.0/s, 40 s left, 3 refused\n"


def test_a_log_gets_a_line_every_few_seconds_and_the_last_one_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("embed", 100, "rows", stream=stream) as progress:
        for done in range(1, 101):
            clock.now += LOG_EVERY_S / 10
            progress.update(done)
    lines = stream.getvalue().splitlines()
    # At 1, 11, 21, ..., 91, and at the end.
    assert [line.split()[1] for line in lines] == [str(n) for n in range(1, 101, 10)] + ["100"]
    # 100 rows x 0.5 s each
    assert lines[-1] == "embed: 100 of 100 rows (100 %), 2.0/s, took 50 s"
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_where_the_total_is_not_known_there_is_neither_share_nor_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    progress = Progress("reading", 0, "rows", stream=stream)
    clock.now += 4
    progress.update(10)
    assert stream.getvalue() == "reading: 10 rows, 2.5/s\n"


def test_the_rate_counts_from_a_restart(clock: Clock) -> None:
    progress = Progress("train", 100, "steps", stream=io.StringIO())
    clock.now += 50
    progress.restart(20)
    clock.now += 5
    progress.update(30)
    # 10 steps in 5 s; 70 / 2 = 35 s
    assert progress.line() == "train: 30 of 100 steps (30 %), 2.0/s, 35 s left"


def test_a_step_that_fails_claims_no_end(clock: Clock) -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), Progress("synth", 10, "rows", stream=stream):
        raise ValueError
    assert "took" not in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_drawn_over(clock: Clock) -> None:
    stream = Terminal()
    with Progress("synth", 4, "rows", stream=stream) as progress:
        for done in (1, 2, 3, 4):
            clock.now += 1
            progress.update(done)
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("took 4 s\n")
    assert stream.getvalue().count("\r") == 5


def test_how_long_is_left_is_told_once_a_few_are_done(clock: Clock) -> None:
    progress = Progress("synth", 5_000, "samples", stream=io.StringIO())
    clock.now += 2
    progress.update(19)
    assert "left" not in progress.line()
    progress.update(20)
    assert progress.line().endswith("10.0/s, 8 min 18 s left")
    few = Progress("parts", 30, "parts", stream=io.StringIO())
    clock.now += 2
    few.update(3)
    assert "18 s left" in few.line()


def test_a_job_that_is_stopped_says_how_far_it_came_and_one_that_failed_does_not(clock: Clock) -> None:
    stopped = ["a: 1 of 9 rows (11 %), 0.5/s, 16 s left", "a: 4 of 9 rows (44 %), 2.0/s, 2 s left"]
    for error, said in ((KeyboardInterrupt(), stopped), (ValueError(), stopped[:1])):
        stream = io.StringIO()
        with pytest.raises(type(error)), Progress("a", 9, "rows", stream=stream) as progress:
            clock.now += 2
            progress.update(1)
            progress.update(4)
            raise error
        assert stream.getvalue().splitlines() == said


def test_what_is_looked_at_now_and_then_is_looked_at_once_more_at_the_end() -> None:
    seen: list[str] = []
    with called_every(60.0, lambda: seen.append("look")):
        assert seen == []
    assert seen == ["look"]
    with called_every(0.01, lambda: seen.append("look")):
        for _ in range(500):
            if len(seen) > 3:
                break
            time.sleep(0.01)
    assert len(seen) > 4


def test_a_step_that_is_paused_promises_no_time_and_says_lines_of_its_own(clock: Clock) -> None:
    for stream in (io.StringIO(), Terminal()):
        progress = Progress("synth", 2_000, "samples", stream=stream)
        clock.now += 10
        progress.update(100, "the teacher asks to wait 59 min 0 s", is_paused=True)
        assert "left" not in progress.line() and progress.line().endswith("asks to wait 59 min 0 s")
        progress.say("synth: a note")
        assert "synth: a note\n" in stream.getvalue()
        progress.update(100)
        assert "3 min 10 s left" in progress.line()
