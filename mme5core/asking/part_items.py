"""Which records, with which answers, make which part of an output."""

from __future__ import annotations

from pathlib import Path

from mme5core.asking.answer_log import Survey, log_files, with_sizes
from mme5core.asking.question import Records
from mme5core.tasks import Item

RECORDS_PER_PART = 20_000


def part_items(records: Records, log: Path, survey: Survey) -> list[Item]:
    """Items of `parts.PartFiles`: the files of about RECORDS_PER_PART records each, and their answers."""
    items: list[Item] = []
    starts, files_of, files = records.starts, log_files(log), list[int]()
    num_files = len(starts) - 1
    for number in range(num_files):
        files.append(number)
        if starts[number + 1] - starts[files[0]] >= RECORDS_PER_PART or number + 1 == num_files:
            answers = [with_sizes(files_of.get(own, ())) for own in files]
            made_from = [survey.digests.get(own, "") for own in files]
            items.append({"part": len(items), "files": files, "answers": answers, "made_from": made_from})
            files = []
    return items
