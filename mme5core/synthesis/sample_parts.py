"""From answers to samples: the task that writes one part, with its refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mme5core.asking.answer_log import ANSWERED, Entry, entries_of, when_seen
from mme5core.asking.question import Retry, Unsuitable, verdict_of
from mme5core.asking.recorder import AWAY
from mme5core.images import BadImage
from mme5core.parts import NewPart
from mme5core.schemas import SAMPLES
from mme5core.synthesis.answer import Parsed
from mme5core.synthesis.near_duplicates import Seen
from mme5core.synthesis.plan import PlannedSample
from mme5core.synthesis.planning import Plan, planned
from mme5core.synthesis.question import Synthesis
from mme5core.tasks import Item
from mme5core.types import Content, Rejected, Sample

ROWS_PER_GROUP = 256


@dataclass(frozen=True, slots=True)
class WriteSamples:
    """The task: writes the samples of some files of the plan, and counts "kept", "pending" and "repaired".

    "away" are those among the pending whose answer is there, but not their picture any more.

    Args:
        near_duplicate: see `near_duplicates.Seen`.
        folder: of the parts.
        refuses_away: refuse samples whose picture is away, rather than leave them to the next run.
    """

    plan: Plan
    question: Synthesis
    near_duplicate: float | None
    folder: Path
    refuses_away: bool = False

    def __call__(self, item: Item) -> Iterator[Item]:
        counts = Counter[str]()
        with NewPart(self.folder, SAMPLES) as part:
            group: list[dict[str, Any]] = []
            for row in self._rows(item, part.refused, counts):
                group.append(row)
                if len(group) >= ROWS_PER_GROUP:
                    part.writer.write_table(pa.Table.from_pylist(group, SAMPLES))
                    group.clear()
            if group:
                part.writer.write_table(pa.Table.from_pylist(group, SAMPLES))
            yield item | {name: counts[name] for name in ("kept", "pending", "repaired", "away")} | part.close()

    def _rows(self, item: Item, refused: list[Rejected], counts: Counter[str]) -> Iterator[dict[str, Any]]:
        for file, answers in zip(item["files"], item["answers"], strict=True):
            entries = entries_of(when_seen(answers))
            seen = Seen(self.near_duplicate)
            for number, record in enumerate(self.plan.rows(file), int(self.plan.starts[file])):
                entry = entries.get(number)
                if entry is None:
                    counts["pending"] += 1
                    continue
                sample = self._sample(record, entry, seen)
                if isinstance(sample, Rejected):
                    refused.append(sample)
                    continue
                try:
                    images = {place["id"]: self.question.pictures.read(place) for place in record["pictures"]}
                except BadImage as error:
                    if error.reason in AWAY and not self.refuses_away:
                        counts.update(("pending", "away"))
                    else:
                        refused.append(Rejected(record["id"], error.reason, error.detail))
                    continue
                counts["kept"] += 1
                counts["repaired"] += sample.repaired
                yield sample_row(sample.sample, planned(record), entry, images)

    def _sample(self, record: dict[str, Any], entry: Entry, seen: Seen) -> Parsed | Rejected:
        """The sample of a settled entry of the log."""
        if entry.status != ANSWERED:
            return Rejected(record["id"], entry.answer["reason"], entry.answer["detail"])
        verdict = verdict_of(self.question, entry.answer, record)
        if isinstance(verdict, Rejected):
            return verdict
        if isinstance(verdict, Retry | Unsuitable):
            # settled by an earlier version, which took it for the model's own answer
            return Rejected(record["id"], "unfinished_answer", verdict.reason)
        (parsed,) = verdict
        return seen.check(parsed.sample, planned(record)) or parsed


def sample_row(sample: Sample, plan: PlannedSample, entry: Entry, images: dict[str, bytes]) -> dict[str, Any]:
    """A sample as a row of SAMPLES, with what made it.

    Args:
        images: encoded bytes by id.
    """

    def content(content: Content, image_id: str | None) -> dict[str, Any]:
        image = None if image_id is None else {"bytes": images[image_id], "path": image_id}
        return {"text": content.text, "image": image}

    negative_images = plan.negative_images or (None,) * len(sample.negatives)
    answer = entry.answer
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
        "raw": answer["text"],
        "prompt_sha256": answer["prompt_sha256"],
        "teacher": answer["model"],
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "usd": answer["usd"],
        "seed": answer["seed"],
    }
