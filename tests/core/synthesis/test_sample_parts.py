"""The parts of a synthesis: a later run writes those whose answers have changed, and takes the others as they are."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.parquet as pq
import pytest

from mme5core.asking import part_items as part_items_module
from mme5core.asking.answer_log import ANSWERED, REJECTED, AnswerWriter, Entry
from mme5core.asking.part_items import part_items
from mme5core.corpus.stored_pictures import StoredPictures
from mme5core.file_entries import describe
from mme5core.parts import Part, PartFiles, part_name
from mme5core.readers import AS_IT_IS
from mme5core.synthesis import planning
from mme5core.synthesis.question import Synthesis
from mme5core.synthesis.sample_parts import WriteSamples
from mme5core.tasks import Item, Runner, Task
from rayjobs.folder import JobFolder, Run
from tests.core.asking.server import GOOD, NUM_PICTURES, Work

NUM_FILES, NUM_PARTS = 8, 4
VALUE = {"text": json.dumps(GOOD), "finish_reason": "stop", "model": "m", "prompt_sha256": "", "seed": 1, "usd": None}


def backwards(task: Task, items: Sequence[Item]) -> Iterator[Item]:
    return (report for item in reversed(items) for report in task(item))


class Parts:
    """Four parts of a plan of eight files of five samples, and which of them a run has written."""

    def __init__(self, work: Work, folder: Path) -> None:
        self.work, self.job = work, JobFolder(folder, Run("synth", {}, "same", {}, {}))
        self.job.open()
        self.folder, self.output = self.job.work / "parts", self.job.path
        self.written: list[int] = []

    def write(self, run: Runner = backwards, *, refuses_away: bool = False) -> list[Part]:
        """As a run does it, which then takes them to the output."""
        pictures = StoredPictures(self.work.plan.shards, ("",), AS_IT_IS, Path("no index"))
        task = WriteSamples(self.work.plan, Synthesis(pictures, 1), None, self.folder, refuses_away)
        items = part_items(self.work.plan, self.work.answers, self.work.survey())
        files = PartFiles(self.folder, self.output)
        by_number = {number: part for number, part in files.written(items).items() if not part.report["away"]}
        missing = [item for item in items if item["part"] not in by_number]
        self.written = [item["part"] for item in missing]
        by_number |= {part.number: part for part in files.write(task, missing, run)}
        parts = [by_number[item["part"]] for item in items]
        self.job.take_parts({part.entry["name"]: part.file for part in parts})
        kept, pending, refused = (sum(counts) for counts in zip(*map(_counts, parts), strict=True))
        self.job.finish(
            unit="planned samples",
            num_read=NUM_PICTURES,
            num_kept=kept,
            refused=Counter({"some": refused}),
            pending=pending,
            described=[part.entry for part in parts],
        )
        return parts

    def rows(self) -> list[dict[str, Any]]:
        return [row for file in sorted(self.output.glob("part-*")) for row in pq.read_table(file).to_pylist()]


def _counts(part: Part) -> tuple[int, int, int]:
    """Kept, pending, refused."""
    return part.report["kept"], part.report["pending"], part.report["refusals"]["rows"]


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    for name, number in (("FEWEST_PER_FILE", 1), ("FILES_PER_WORKER", NUM_FILES)):
        monkeypatch.setattr(planning, name, number)
    monkeypatch.setattr(part_items_module, "RECORDS_PER_PART", NUM_PICTURES // NUM_PARTS)
    work = Work(tmp_path)
    assert work.plan.num_files == NUM_FILES
    return Parts(work, tmp_path / "out")


def answer(work: Work, numbers: Sequence[int], *, worker: str = "a", status: str = ANSWERED) -> None:
    for number in numbers:
        writer = AnswerWriter(work.answers, number * NUM_FILES // NUM_PICTURES, worker)
        value = VALUE if status == ANSWERED else {"reason": "teacher_rejected", "detail": "400"}
        writer.write(Entry(number, status, 1, 9, 9, 0.0, "-", value))
        writer.close()


def test_counts_and_entries_are_told_in_the_order_of_the_parts(parts: Parts) -> None:
    answer(parts.work, range(12))
    answer(parts.work, [12, 39], status=REJECTED)
    written = parts.write()
    assert [part.report["part"] for part in written] == [0, 1, 2, 3]
    assert [_counts(part) for part in written] == [(10, 0, 0), (2, 7, 1), (0, 10, 0), (0, 9, 1)]
    manifest = json.loads((parts.output / "_manifest.json").read_text())
    described = [describe(parts.output / part_name(n), parts.output) for n in range(4)]
    assert manifest["files"] == [part.entry for part in written] == described
    assert [row["id"] for row in parts.rows()] == [f"{n:02d}.png-0" for n in range(12)]
    refused = [row for part in written for row in pq.read_table(part.refusals).to_pylist()]
    assert [(row["id"], row["reason"]) for row in refused] == [(f"{n}.png-0", "teacher_rejected") for n in (12, 39)]


def test_a_sample_whose_picture_is_gone_waits_for_it_or_is_refused(parts: Parts) -> None:
    answer(parts.work, range(12))
    file = parts.work.root / "pictures" / "03.png"
    data = file.read_bytes()
    file.unlink()
    assert _counts(parts.write()[0]) == (9, 1, 0)
    assert _counts(parts.write(refuses_away=True)[0]) == (9, 0, 1)
    file.write_bytes(data)
    assert _counts(parts.write()[0]) == (9, 0, 1)  # refused for good


def test_a_part_that_waits_for_a_picture_is_written_again_when_it_is_back(parts: Parts) -> None:
    answer(parts.work, range(12))
    file = parts.work.root / "pictures" / "03.png"
    data = file.read_bytes()
    file.unlink()
    parts.write()
    file.write_bytes(data)
    assert _counts(parts.write()[0]) == (10, 0, 0) and parts.written == [0]


def test_only_parts_with_other_answers_are_written_again(parts: Parts) -> None:
    answer(parts.work, range(12))
    parts.write()
    assert parts.written == [0, 1, 2, 3]
    parts.write()
    assert parts.written == []
    # By a worker whose files come before the others' in the log.
    answer(parts.work, range(12, 25), worker="0")
    written = parts.write()
    assert parts.written == [1, 2]
    assert [_counts(part) for part in written] == [(10, 0, 0), (10, 0, 0), (5, 5, 0), (0, 10, 0)]
    assert [row["id"] for row in parts.rows()] == [f"{n:02d}.png-0" for n in range(25)]


def test_a_second_answer_changes_no_row(parts: Parts) -> None:
    answer(parts.work, range(12))
    parts.write()
    rows = parts.rows()
    answer(parts.work, [3], worker="b")
    parts.write()
    assert parts.written == [0] and parts.rows() == rows  # its part is written again, from the same answers


@pytest.mark.parametrize("harm", ["remove", "cut", "forget", "lose the refusals", "an older version's"])
def test_a_part_that_is_not_whole_any_more_is_written_again(parts: Parts, harm: str) -> None:
    answer(parts.work, range(12))
    written = parts.write()
    rows, part, report = parts.rows(), parts.output / part_name(1), parts.folder / "report-00001.json"
    if harm == "remove":
        part.unlink()
    elif harm == "cut":
        part.write_bytes(part.read_bytes()[:-1])
    elif harm == "lose the refusals":
        written[1].refusals.unlink()
    elif harm == "forget":
        report.unlink()
    else:
        report.write_text(json.dumps({k: v for k, v in json.loads(report.read_text()).items() if k != "made_from"}))
    parts.write()
    assert parts.written == [1] and parts.rows() == rows


def as_after_a_kill(parts: Parts, written: Sequence[Part]) -> None:
    """Parts that were written, and not taken to the output."""
    for part in written:
        (parts.output / part.entry["name"]).rename(part.file)


def test_a_part_that_a_killed_run_left_beside_the_output_is_taken(parts: Parts) -> None:
    answer(parts.work, range(12))
    as_after_a_kill(parts, parts.write()[2:3])
    parts.write()
    assert parts.written == [] and (parts.output / part_name(2)).is_file()


def test_files_that_no_task_reported_are_removed(parts: Parts) -> None:
    answer(parts.work, range(12))
    parts.folder.mkdir(exist_ok=True)
    for name in ("0123.parquet", ".0123", "part-00001.parquet"):
        (parts.folder / name).write_bytes(b"half")
    (parts.folder / ".nfs0001").mkdir()  # cannot be removed
    parts.write()
    left = {file.name for file in parts.folder.iterdir() if file.suffix != ".json"} - {".nfs0001"}
    assert len(left) == NUM_PARTS and all(name.endswith("-refused.parquet") for name in left)


def test_a_task_that_outlives_its_run_spoils_nothing(parts: Parts) -> None:
    answer(parts.work, range(12))
    late: list[Any] = []

    def killed(task: Task, items: Sequence[Item]) -> Iterator[Item]:
        late.extend((task, item) for item in items)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.write(killed)
    answer(parts.work, range(12, 25))

    def beside(task: Task, items: Sequence[Item]) -> Iterator[Item]:
        for item in items:
            yield from task(item)
            old, asked = late[item["part"]]
            list(old(asked))

    parts.write(beside)
    assert [row["id"] for row in parts.rows()] == [f"{n:02d}.png-0" for n in range(25)]
    assert parts.written == [0, 1, 2, 3]


def test_parts_are_taken_when_this_machine_sees_them(parts: Parts, tmp_path: Path) -> None:
    answer(parts.work, range(12))
    as_after_a_kill(parts, parts.write())
    answer(parts.work, range(12, 25))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def seen_late(task: Task, items: Sequence[Item]) -> Iterator[Item]:
        """On a machine whose files come to be seen here some time after they are said to be written."""
        assert isinstance(task, WriteSamples)
        reports = [report for item in items for report in replace(task, folder=elsewhere)(item)]

        def show() -> None:
            for file in sorted(elsewhere.iterdir()):
                time.sleep(0.2)
                shutil.move(file, parts.folder / file.name)

        Thread(target=show).start()
        yield from reports

    parts.write(seen_late)
    assert parts.written == [1, 2]
    assert [row["id"] for row in parts.rows()] == [f"{n:02d}.png-0" for n in range(25)]


def test_an_answer_of_an_earlier_version_that_the_server_had_broken_off_is_refused_and_does_not_stay_pending(
    parts: Parts,
) -> None:
    answer(parts.work, range(10))
    writer = AnswerWriter(parts.work.answers, 10 * NUM_FILES // NUM_PICTURES, "a")
    writer.write(Entry(10, ANSWERED, 1, 9, 9, 0.0, "-", VALUE | {"text": "", "finish_reason": "error"}))
    writer.close()
    written = parts.write()
    assert _counts(written[1]) == (0, 9, 1)
    (refused,) = pq.read_table(written[1].refusals).to_pylist()
    assert refused["reason"] == "unfinished_answer" and "'error'" in refused["detail"]
