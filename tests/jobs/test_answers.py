"""Tests of the log of answers: what a kill leaves, what counts, what other runs find again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mme5core.synthesis.rates import Usage
from rayjobs.answers import (
    ANSWERED,
    FAILED,
    REJECTED,
    AnswerCache,
    AnswerLog,
    AnswerWriter,
    Entry,
    settled,
    so_far,
    used_by_worker,
)


def entry(number: int, status: str = ANSWERED, *, text: str = "a", calls: int = 1, key: str = "") -> Entry:
    return Entry(number, status, calls, 10, 5, 0.5, key or f"{number:032x}", {"text": text})


def log_of(folder: Path, num_plans: int = 6) -> AnswerLog:
    return AnswerLog(folder, num_plans, folder / "places")


def test_what_was_written_is_read_by_number(tmp_path: Path) -> None:
    one, other = AnswerWriter(tmp_path, 0, "a"), AnswerWriter(tmp_path, 0, "b")
    one.write(entry(3, text="tab\t, line\n, половина 🐱"))
    other.write(entry(0))
    one.write(entry(5, REJECTED))
    log = log_of(tmp_path)
    assert (log.num_done, log.usage.calls, log.usage.prompt_tokens, log.usage.num_answered) == (3, 3, 30, 2)
    found = log.reader().entries(0, 6)
    assert [e.number if e else None for e in found] == [0, None, None, 3, None, 5]
    assert found[3] and found[3].value == {"text": "tab\t, line\n, половина 🐱"}
    assert [e and e.number for e in log.reader().entries(3, 5)] == [3, None]


def test_failures_cost_and_leave_the_sample_open(tmp_path: Path) -> None:
    writer = AnswerWriter(tmp_path, 0, "a")
    writer.write(entry(1, FAILED, calls=5))
    assert log_of(tmp_path).num_done == 0
    writer.write(entry(1))
    log = log_of(tmp_path)
    assert (log.num_done, log.usage.calls) == (1, 6)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_kill_broke_off_does_not_count(tmp_path: Path, cut: int) -> None:
    writer = AnswerWriter(tmp_path, 0, "a")
    for number in range(3):
        writer.write(entry(number, text="x" * 50))
    (file,) = tmp_path.glob("*.answers")
    file.write_bytes(file.read_bytes()[:-cut])
    log = log_of(tmp_path)
    assert [e and e.number for e in log.reader().entries(0, 3)] == [0, 1, None]
    assert log.usage.calls == 2


def test_of_two_answers_to_one_sample_one_counts_for_the_rows_and_both_for_the_money(tmp_path: Path) -> None:
    for text in "ab":
        AnswerWriter(tmp_path, 0, text).write(entry(2, text=text))
    log = log_of(tmp_path)
    assert (log.num_done, log.usage.calls) == (1, 2)
    (found,) = {log_of(tmp_path).reader().entries(2, 3)[0].value["text"] for _ in range(3)}  # type: ignore[union-attr]
    assert found in "ab"


def test_half_a_character_survives(tmp_path: Path) -> None:
    AnswerWriter(tmp_path, 0, "a").write(entry(0, text="\ud83d"))
    assert log_of(tmp_path).reader().entries(0, 1)[0].value == {"text": "\ud83d"}  # type: ignore[union-attr]


def test_a_cache_finds_answers_by_what_was_asked(tmp_path: Path) -> None:
    for number in range(40):
        AnswerWriter(tmp_path, number, "a").write(entry(number, text=str(number)))
    AnswerWriter(tmp_path, 99, "b").write(entry(41, REJECTED, key="f" * 32))
    # The same first half of a key is another key.
    AnswerWriter(tmp_path, 99, "b").write(entry(42, key="0" * 16 + "a" * 16, text="other"))
    cache = AnswerCache(tmp_path)
    assert len(cache) == 41
    for number in range(40):
        found = cache.get(f"{number:032x}")
        assert found and found.value["text"] == str(number)
    assert cache.get("0" * 16 + "a" * 16).value["text"] == "other"  # type: ignore[union-attr]
    assert cache.get("f" * 32) is None and cache.get("e" * 32) is None
    assert len(AnswerCache(tmp_path / "none")) == 0


def test_what_is_settled_of_a_file_of_the_plan_and_what_each_worker_used(tmp_path: Path) -> None:
    one, other, next_file = (AnswerWriter(tmp_path, file, name) for file, name in ((7, "a"), (7, "b"), (8, "a")))
    one.write(entry(70))
    one.write(entry(71, FAILED, calls=3))
    other.write(entry(72, REJECTED))
    next_file.write(entry(80))
    one.close()
    one.write(entry(73))  # closed, and opened again
    assert settled(tmp_path, 7) == {70, 72, 73} and settled(tmp_path, 8) == {80} and settled(tmp_path, 9) == set()
    assert used_by_worker(tmp_path) == {"a": Usage(6, 3, 40, 20, 2.0), "b": Usage(1, 0, 10, 5, 0.5)}
    assert log_of(tmp_path, 100).used_by_worker == used_by_worker(tmp_path)


def test_an_answer_out_of_a_cache_is_no_answer_that_was_paid_for(tmp_path: Path) -> None:
    AnswerWriter(tmp_path, 0, "a").write(entry(0, calls=0))
    log = log_of(tmp_path)
    assert log.num_done == 1 and log.usage.num_answered == 0


def test_a_file_that_another_job_is_copying_is_not_read(tmp_path: Path) -> None:
    AnswerWriter(tmp_path, 0, "a").write(entry(0))
    (file,) = tmp_path.glob("*.answers")
    file.rename(tmp_path / f".{file.name}")
    assert len(AnswerCache(tmp_path)) == 0


def test_a_cache_takes_what_was_paid_for_and_later_what_has_come_since(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    log.mkdir()
    folder.mkdir()
    writer, other = AnswerWriter(log, 0, "a"), AnswerWriter(log, 1, "a")
    other.write(entry(9))
    for one in (entry(1), entry(2, calls=0), entry(3, FAILED), entry(4, REJECTED)):
        writer.write(one)
    AnswerCache.keep(log_of(log).files, folder)
    assert len(AnswerCache(folder)) == 2
    cache = AnswerCache(folder)
    assert cache.get(f"{1:032x}") and not cache.get(f"{2:032x}")  # it came from there
    inode = (folder / "000001-a.answers").stat().st_ino
    time.sleep(0.05)  # more than a tick of the file system's clock
    writer.write(entry(5))
    AnswerCache.keep(log_of(log).files, folder)
    assert len(AnswerCache(folder)) == 3 and (folder / "000001-a.answers").stat().st_ino == inode
    assert len(list(folder.iterdir())) == 2


def test_answers_have_the_same_digest_where_they_lie_in_the_same_lines(tmp_path: Path) -> None:
    writer = AnswerWriter(tmp_path, 1, "b")
    for number in range(4):
        writer.write(entry(number))
    digests = [log_of(tmp_path).digest(*span) for span in ((0, 2), (2, 4), (4, 6))]
    assert len(set(digests)) == 3
    AnswerWriter(tmp_path, 0, "a").write(entry(4))  # a file before it; the second answer to 3 does not count
    writer.write(entry(3))
    assert [log_of(tmp_path).digest(*span) for span in ((0, 2), (2, 4))] == digests[:2]
    assert log_of(tmp_path).digest(4, 6) != digests[2]
    (tmp_path / "000001-b.answers").rename(tmp_path / "000001-c.answers")  # as long, and of somebody else
    assert not {log_of(tmp_path).digest(*span) for span in ((0, 2), (2, 4))} & set(digests)


def test_what_a_run_has_copied_into_the_cache_is_left_out_when_it_goes_on(tmp_path: Path) -> None:
    AnswerWriter(tmp_path, 0, "own").write(entry(1))
    AnswerWriter(tmp_path, 0, "other").write(entry(2))
    cache = AnswerCache(tmp_path, without={"000000-own.answers"})
    assert len(cache) == 1 and cache.get(f"{2:032x}") and not cache.get(f"{1:032x}")


def test_a_cache_gives_each_request_its_own_answer_and_reads_over_what_is_not_ours(tmp_path: Path) -> None:
    numbers = [5, 3, 9, 1, 7, 2]
    for place, number in enumerate(numbers):
        AnswerWriter(tmp_path, place % 2, "a").write(entry(number, text=f"of {number}", key=f"{number:016x}" * 2))
    (tmp_path / "000000-b.answers").write_text("not ours\n1\tanswered\t1\t1\t1\t0.0\tno hex\t{}\n")
    (tmp_path / "000000-c.answers").write_text("1\tanswered\t1\t1\t1\t0.0\t-\t{}\n1\tanswered\t1\t1\t1\t0.0\tab\t{}\n")
    damaged = f"{11:016x}" * 2
    (tmp_path / "000000-d.answers").write_text(f"1\tanswered\t1\t1\t1\t0.0\t{damaged}\t{{half\n")
    cache = AnswerCache(tmp_path)
    assert len(cache) == len(numbers) + 1 and cache.get(damaged) is None
    for number in numbers:
        found = cache.get(f"{number:016x}" * 2)
        assert found and found.value == {"text": f"of {number}"}


def test_what_is_settled_over_all_files(tmp_path: Path) -> None:
    for file, name, numbers in ((0, "a", (0, 1)), (0, "b", (1, 2)), (1, "a", (5,))):
        writer = AnswerWriter(tmp_path, file, name)
        for number in numbers:
            writer.write(entry(number))
    AnswerWriter(tmp_path, 1, "b").write(entry(6, FAILED, calls=3))
    assert so_far(tmp_path) == (4, Usage(8, 5, 60, 30, 3.0))


def test_a_cache_that_cannot_be_written_has_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    log.mkdir()
    folder.mkdir()
    AnswerWriter(log, 0, "a").write(entry(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.utime", full)
    with pytest.raises(OSError, match="No space"):
        AnswerCache.keep(log_of(log).files, folder)
    assert not list(folder.iterdir())
