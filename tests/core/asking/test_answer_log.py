"""Tests of the log of answers: what a kill leaves, what counts, what other runs find again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mme5core.asking.answer_cache import AnswerCache
from mme5core.asking.answer_log import (
    ANSWERED,
    FAILED,
    REJECTED,
    AnswerWriter,
    Entry,
    Survey,
    entries_of,
    log_files,
    settled,
)
from mme5core.asking.rates import Usage


def entry(number: int, status: str = ANSWERED, *, text: str = "a", calls: int = 1, key: str = "") -> Entry:
    return Entry(number, status, calls, 10, 5, 0.5, key or f"{number:032x}", {"text": text})


def survey(folder: Path) -> Survey:
    return Survey.of_folder(folder)


def num_done(folder: Path) -> int:
    return int(survey(folder).num_settled.sum())


def entries(folder: Path) -> dict[int, Entry]:
    """All settled entries of a log by number."""
    return {number: found for files in log_files(folder).values() for number, found in entries_of(files).items()}


def test_what_was_written_is_read_by_number(tmp_path: Path) -> None:
    one, other = AnswerWriter(tmp_path, 0, "a"), AnswerWriter(tmp_path, 0, "b")
    one.write(entry(3, text="tab\t, line\n, половина 🐱"))
    other.write(entry(0))
    one.write(entry(5, REJECTED))
    usage = survey(tmp_path).usage
    assert (num_done(tmp_path), usage.calls, usage.prompt_tokens, usage.num_answered) == (3, 3, 30, 2)
    assert {number: e.status for number, e in entries(tmp_path).items()} == {0: ANSWERED, 3: ANSWERED, 5: REJECTED}
    assert entries(tmp_path)[3].answer == {"text": "tab\t, line\n, половина 🐱"}


def test_failures_cost_and_leave_the_sample_open(tmp_path: Path) -> None:
    writer = AnswerWriter(tmp_path, 0, "a")
    writer.write(entry(1, FAILED, calls=5))
    assert num_done(tmp_path) == 0 and not entries(tmp_path)
    writer.write(entry(1))
    assert (num_done(tmp_path), survey(tmp_path).usage.calls) == (1, 6)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_kill_broke_off_does_not_count(tmp_path: Path, cut: int) -> None:
    writer = AnswerWriter(tmp_path, 0, "a")
    for number in range(3):
        writer.write(entry(number, text="x" * 50))
    (file,) = tmp_path.glob("*.answers")
    file.write_bytes(file.read_bytes()[:-cut])
    assert sorted(entries(tmp_path)) == [0, 1]
    assert (num_done(tmp_path), survey(tmp_path).usage.calls) == (2, 2)


def test_of_two_answers_to_one_sample_one_counts_for_the_rows_and_both_for_the_money(tmp_path: Path) -> None:
    for text in "ab":
        AnswerWriter(tmp_path, 0, text).write(entry(2, text=text))
    assert (num_done(tmp_path), survey(tmp_path).usage.calls) == (1, 2)
    assert entries(tmp_path)[2].answer == {"text": "a"}  # the first by the files' names


def test_half_a_character_survives(tmp_path: Path) -> None:
    AnswerWriter(tmp_path, 0, "a").write(entry(0, text="\ud83d"))
    assert entries(tmp_path)[0].answer == {"text": "\ud83d"}


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
        assert found and found.answer["text"] == str(number)
    assert cache.get("0" * 16 + "a" * 16).answer["text"] == "other"  # type: ignore[union-attr]
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
    assert survey(tmp_path).used_by_worker == {"a": Usage(6, 3, 40, 20, 2.0), "b": Usage(1, 0, 10, 5, 0.5)}
    assert survey(tmp_path).num_settled.tolist() == [0] * 7 + [3, 1]


def test_an_answer_out_of_a_cache_is_no_answer_that_was_paid_for(tmp_path: Path) -> None:
    AnswerWriter(tmp_path, 0, "a").write(entry(0, calls=0))
    assert num_done(tmp_path) == 1 and survey(tmp_path).usage.num_answered == 0


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
    AnswerCache.keep(sorted(log.glob("*.answers")), folder)
    assert len(AnswerCache(folder)) == 2
    cache = AnswerCache(folder)
    assert cache.get(f"{1:032x}") and not cache.get(f"{2:032x}")  # it came from there
    inode = (folder / "000001-a.answers").stat().st_ino
    time.sleep(0.05)  # more than a tick of the file system's clock
    writer.write(entry(5))
    AnswerCache.keep(sorted(log.glob("*.answers")), folder)
    assert len(AnswerCache(folder)) == 3 and (folder / "000001-a.answers").stat().st_ino == inode
    assert len(list(folder.iterdir())) == 2


def test_the_digest_of_a_file_of_records_changes_with_its_answers_alone(tmp_path: Path) -> None:
    writer = AnswerWriter(tmp_path, 1, "b")
    writer.write(entry(10))
    AnswerWriter(tmp_path, 2, "b").write(entry(20))
    before = survey(tmp_path).digests
    assert sorted(before) == [1, 2] and before[1] != before[2] and survey(tmp_path).digests == before
    writer.write(entry(11))
    after = survey(tmp_path).digests
    assert after[1] != before[1] and after[2] == before[2]
    (tmp_path / "000001-b.answers").rename(tmp_path / "000001-c.answers")  # as long, and of another worker
    assert survey(tmp_path).digests[1] not in (before[1], after[1])


def test_answers_to_a_plan_that_was_made_anew_do_not_count(tmp_path: Path) -> None:
    for file in (0, 5):
        AnswerWriter(tmp_path, file, "a").write(entry(10 * file))
    assert Survey.of(tmp_path, 3).num_settled.tolist() == [1, 0, 0]


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
        assert found and found.answer == {"text": f"of {number}"}


def test_what_is_settled_over_all_files(tmp_path: Path) -> None:
    for file, name, numbers in ((0, "a", (0, 1)), (0, "b", (1, 2)), (1, "a", (5,))):
        writer = AnswerWriter(tmp_path, file, name)
        for number in numbers:
            writer.write(entry(number))
    AnswerWriter(tmp_path, 1, "b").write(entry(6, FAILED, calls=3))
    assert num_done(tmp_path) == 4 and survey(tmp_path).usage == Usage(8, 5, 60, 30, 3.0)


def test_a_cache_that_cannot_be_written_has_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, folder = tmp_path / "log", tmp_path / "cache"
    log.mkdir()
    folder.mkdir()
    AnswerWriter(log, 0, "a").write(entry(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.utime", full)
    with pytest.raises(OSError, match="No space"):
        AnswerCache.keep(sorted(log.glob("*.answers")), folder)
    assert not list(folder.iterdir())
