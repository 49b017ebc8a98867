"""From answers to samples: which parts are to be written, and the task that writes one, with its refusals."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.schemas import QUARANTINE, SAMPLES
from mme5core.synthesis.answer import Parsed
from mme5core.synthesis.near_duplicates import Seen
from mme5core.synthesis.plan import PlannedSample
from mme5core.types import Content, Rejected, Sample
from rayjobs.answers import ANSWERED, AnswerLog, AnswerReader, Entry
from rayjobs.cluster import Runner
from rayjobs.output import describe, has_file, part_name, sync_file, write_json
from rayjobs.planning import Plan, planned
from rayjobs.progress import Progress
from rayjobs.scan import wait_until_seen
from rayjobs.synth_worker import Pictures, Rules

PLANS_PER_PART = 20_000
ROWS_PER_GROUP = 256


@dataclass(frozen=True, slots=True)
class Part:
    """A part as its task has told of it (`WriteSamples`), and where it lies: beside the output, or in it already."""

    told: dict[str, Any]
    file: Path
    refusals: Path

    @property
    def entry(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return self.told["file"] | {"name": part_name(self.told["part"])}


def write_parts(task: WriteSamples, log: AnswerLog, output: Path, run: Runner) -> list[Part]:
    """Write what there is of every part, into the task's folder.

    A part that was written before, from the same answers, is taken as it is. What tasks of a killed run left, or are
    writing yet, has names by chance that nobody has been told.

    Raises:
        JobFailed: this machine does not see what the tasks have written.
    """
    folder = task.folder
    folder.mkdir(exist_ok=True)
    items = list(_parts_of(task.plan, log))
    parts = {item["part"]: found for item in items if (found := _written(folder, output, item)) is not None}
    _clear(folder, parts.values())
    missing = [item for item in items if item["part"] not in parts]
    with Progress("synth: writing", len(items), "parts", done=len(parts)) as progress:
        for told in run(task, missing):
            number = told["part"]
            parts[number] = Part(told, folder / told["file"]["name"], folder / told["refusals"]["name"])
            write_json(folder / _told_name(number), told)
            progress.update(len(parts))
    names = {file.name for item in missing for part in [parts[item["part"]]] for file in (part.file, part.refusals)}
    wait_until_seen(lambda: names <= {file.name for file in folder.iterdir()}, folder)
    return [parts[item["part"]] for item in items]


def _parts_of(plan: Plan, log: AnswerLog) -> Iterator[dict[str, Any]]:
    """Which files of the plan make which part, about PLANS_PER_PART samples each, and the answers that there are."""
    part, files = 0, list[int]()
    for file in range(plan.num_files):
        files.append(file)
        start, stop = int(plan.starts[files[0]]), int(plan.starts[file + 1])
        if stop - start >= PLANS_PER_PART or file + 1 == plan.num_files:
            yield {"part": part, "files": files, "answers": log.digest(start, stop)}
            part, files = part + 1, []


def _written(folder: Path, output: Path, item: dict[str, Any]) -> Part | None:
    """A part that an earlier run has written, if it was from these answers and is there still."""
    try:
        told: dict[str, Any] = json.loads((folder / _told_name(item["part"])).read_text())
    except FileNotFoundError:
        return None
    if told["answers"] != item["answers"] or "refusals" not in told or not has_file(folder, told["refusals"]):
        return None
    refusals = folder / told["refusals"]["name"]
    if has_file(folder, told["file"]):
        return Part(told, folder / told["file"]["name"], refusals)
    part = Part(told, output / part_name(item["part"]), refusals)
    return part if has_file(output, part.entry) else None


def _clear(folder: Path, parts: Collection[Part]) -> None:
    """Remove what is of none of these parts."""
    kept = {_told_name(part.told["part"]) for part in parts}
    kept |= {file.name for part in parts for file in (part.file, part.refusals)}
    for file in folder.iterdir():
        if file.name not in kept:
            with contextlib.suppress(OSError):  # a task may be writing it; a shared file system may hold it
                file.unlink()


@dataclass(frozen=True, slots=True)
class WriteSamples:
    """The task: some files of the plan in, their part and its refusals into `folder`, by names that it tells."""

    plan: Plan
    answers: AnswerReader
    pictures: Pictures
    rules: Rules
    near_duplicate: float | None
    folder: Path

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """The item, with the counts "kept", "pending" and "repaired", and what describes the part ("file") and its
        refusals ("refusals").
        """
        counts = Counter[str]()
        refused: list[Rejected] = []
        # A task may run twice at once, where its node was thought dead, and one may outlive its job.
        name = uuid.uuid4().hex
        files = {"file": self.folder / f"{name}.parquet", "refusals": self.folder / f"{name}-refused.parquet"}
        with pq.ParquetWriter(files["file"], SAMPLES, compression="zstd") as writer:
            group: list[dict[str, Any]] = []
            for row in self._rows(item["files"], refused, counts):
                group.append(row)
                if len(group) >= ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, SAMPLES))
                    group.clear()
            if group:
                writer.write_table(pa.Table.from_pylist(group, SAMPLES))
        rows = [{"id": r.id, "reason": r.reason, "detail": r.detail} for r in refused]
        pq.write_table(pa.Table.from_pylist(rows, QUARANTINE), files["refusals"])
        told = item | {name: counts[name] for name in ("kept", "pending", "repaired")}
        for what, file in files.items():
            sync_file(file)
            told[what] = describe(file, self.folder)
        return told

    def _rows(self, files: Sequence[int], refused: list[Rejected], counts: Counter[str]) -> Iterator[dict[str, Any]]:
        for file in files:
            start, stop = self.plan.starts[file], self.plan.starts[file + 1]
            seen = Seen(self.near_duplicate)
            records, entries = self.plan.rows(file), self.answers.entries(int(start), int(stop))
            for record, entry in zip(records, entries, strict=True):
                plan = planned(record)
                if entry is None:
                    counts["pending"] += 1
                    continue
                found = self._sample(plan, record, entry)
                if isinstance(found, Parsed):
                    found = seen.check(found.sample, plan) or found
                if isinstance(found, Rejected):
                    refused.append(found)
                    continue
                counts["kept"] += 1
                counts["repaired"] += found.repaired
                yield sample_row(found.sample, plan, entry)

    def _sample(self, plan: PlannedSample, record: dict[str, Any], entry: Entry) -> Parsed | Rejected:
        value = entry.value
        if entry.status != ANSWERED:
            return Rejected(plan.id, value["reason"], value["detail"])
        images = {place["id"]: self.pictures.read(place) for place in record["pictures"]}
        return self.rules.judge(value, plan, images)


def _told_name(part: int) -> str:
    return f"told-{part:05d}.json"


def sample_row(sample: Sample, plan: PlannedSample, entry: Entry) -> dict[str, Any]:
    """A sample as a row of SAMPLES, with what made it."""

    def content(content: Content, image_id: str | None) -> dict[str, Any]:
        image = {"bytes": content.image, "path": image_id} if content.image is not None else None
        return {"text": content.text, "image": image}

    negative_images = plan.negative_images or (None,) * len(sample.negatives)
    value = entry.value
    return {
        "id": sample.id,
        "task": plan.task,
        "modality_combination": plan.modality_combination,
        "language": plan.language,
        "instruction": sample.instruction,
        "document_instruction": sample.document_instruction,
        "query": content(sample.query, plan.query_image),
        "positive": content(sample.positive, plan.positive_image),
        "negatives": [content(c, i) for c, i in zip(sample.negatives, negative_images, strict=True)],
        "image_ids": list(plan.image_ids),
        "raw": value["text"],
        "prompt_sha256": value["prompt_sha256"],
        "teacher": value["model"],
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "usd": value["usd"],
        "seed": value["seed"],
    }
