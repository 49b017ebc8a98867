"""The task that turns answers into samples: a range of the plan in, a part and its refusals out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
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
from rayjobs.answers import ANSWERED, AnswerReader, Entry
from rayjobs.planning import Plan, planned
from rayjobs.synth_worker import Pictures, Rules

ROWS_PER_GROUP = 256


@dataclass(frozen=True, slots=True)
class WriteSamples:
    """Writes part and refusals of some files of the plan into `folder`, and tells what came of them."""

    plan: Plan
    answers: AnswerReader
    pictures: Pictures
    rules: Rules
    near_duplicate: float | None
    folder: Path

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        told: dict[str, list[Any]] = {"part": [], "kept": [], "pending": [], "repaired": [], "failure": []}
        for item in batch.to_pylist():
            counts: Counter[str] = Counter()
            failure = ""
            try:
                self._write(item["part"], item["files"], counts)
            except OSError as error:
                failure = f"{error.filename or self.folder}: {error.strerror or error}"
            for name in ("kept", "pending", "repaired"):
                told[name].append(counts[name])
            told["part"].append(item["part"])
            told["failure"].append(failure)
        return told

    def _write(self, part: int, files: list[int], counts: Counter[str]) -> None:
        refused: list[Rejected] = []
        with pq.ParquetWriter(self.folder / part_file("samples", part), SAMPLES, compression="zstd") as writer:
            group: list[dict[str, Any]] = []
            for row in self._rows(files, refused, counts):
                group.append(row)
                if len(group) >= ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, SAMPLES))
                    group.clear()
            if group:
                writer.write_table(pa.Table.from_pylist(group, SAMPLES))
        rows = [{"id": r.id, "reason": r.reason, "detail": r.detail} for r in refused]
        pq.write_table(pa.Table.from_pylist(rows, QUARANTINE), self.folder / part_file("refused", part))

    def _rows(self, files: list[int], refused: list[Rejected], counts: Counter[str]) -> Iterator[dict[str, Any]]:
        for file in files:
            start, stop = self.plan.starts[file], self.plan.starts[file + 1]
            seen = Seen(self.near_duplicate)
            records, entries = self.plan.rows(file), self.answers.entries(int(start), int(stop))
            for record, entry in zip(records, entries, strict=True):
                plan = planned(record)
                if entry is None:
                    counts["pending"] += 1
                    continue
                found = self._sample(plan, record, entry, counts)
                if isinstance(found, Parsed):
                    found = seen.check(found.sample, plan) or found
                if isinstance(found, Rejected):
                    refused.append(found)
                    continue
                counts["kept"] += 1
                counts["repaired"] += found.repaired
                yield sample_row(found.sample, plan, entry)

    def _sample(
        self, plan: PlannedSample, record: dict[str, Any], entry: Entry, counts: Counter[str]
    ) -> Parsed | Rejected:
        value = entry.value
        if entry.status != ANSWERED:
            return Rejected(plan.id, value["reason"], value["detail"])
        images = {place["id"]: self.pictures.read(place) for place in record["pictures"]}
        return self.rules.judge(value, plan, images)


def part_file(kind: str, part: int) -> str:
    return f"{kind}-{part:05d}.parquet"


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
