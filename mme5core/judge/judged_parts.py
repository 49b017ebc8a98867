"""From mined candidates to samples with judged hard negatives: the work on one block of samples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mme5core.images import BadImage
from mme5core.judge.plan import JudgePlan
from mme5core.judge.selection import filled_as_published, select_negatives
from mme5core.judge.settings import JudgeSettings, SelectionSettings
from mme5core.parts import NewPart
from mme5core.sample_readers.ours import to_struct
from mme5core.sample_table import SampleTable
from mme5core.schemas import JUDGED
from mme5core.tasks import Item
from mme5core.types import Content, Rejected, Sample

if TYPE_CHECKING:
    from mme5core.judge.local import Judge

RIGHT = 0.5
"""A positive that scores lower is judged wrong."""


@dataclass(frozen=True, slots=True)
class JudgeBlock:
    """Judges a block of samples and writes it as a part; travels to the workers.

    Args:
        samples: the file of a `SampleTable`.
        folder: of the parts.
        seed: of the draws of `fill=published`.
    """

    samples: Path
    plan: JudgePlan
    selection: SelectionSettings
    folder: Path
    seed: int
    settings: JudgeSettings

    def load(self, device: str) -> tuple[Judge, SampleTable]:
        """
        Raises:
            ValueError: as `Judge.load`.
        """
        from mme5core.judge.local import Judge  # torch, which the driver does not need

        own = self.settings
        judge = Judge.load(own.model, device, own.dtype, adapter=own.adapter, remote_code=own.remote_code)
        return judge, SampleTable(self.samples)

    def work(self, item: Item, loaded: tuple[Judge, SampleTable]) -> Item:
        """The report on the samples from "start" to "stop" of an item.

        "pairs" are judged ones, "wrong_positives" and "fewer" count samples.
        """
        (judge, table), counts = loaded, Counter[str]()
        with NewPart(self.folder, JUDGED) as part:
            for position in range(item["start"], item["stop"]):
                row = self._judged(position, judge, table, counts)
                if isinstance(row, Rejected):
                    part.refused.append(row)
                else:
                    counts["kept"] += 1
                    part.writer.write_table(pa.Table.from_pylist([row], JUDGED))
            names = ("kept", "pairs", "wrong_positives", "fewer", "unshown")
            return item | {name: counts[name] for name in names} | part.close()

    def _judged(
        self, position: int, judge: Judge, table: SampleTable, counts: Counter[str]
    ) -> dict[str, Any] | Rejected:
        sample, candidates = table[position], _Candidates.of(position, self.plan.candidates(position), table)
        if not len(candidates.positions):
            return Rejected(sample.id, "no_candidate", "no neighbour of it is the positive of another sample")
        scores = self._scores(judge, sample, candidates.contents, counts)
        if np.isnan(scores[0]):
            return Rejected(sample.id, "unshown_positive", "the judge cannot be shown the query or its positive")
        counts["wrong_positives"] += bool(scores[0] < RIGHT)
        least = self.selection.min_positive_score
        if least is not None and scores[0] < least:
            return Rejected(sample.id, "positive_judged_wrong", f"its score is {scores[0]:.4f}, below {least}")
        return self._row(sample, scores[0], candidates.shown(~np.isnan(scores[1:])), scores[1:], table, counts)

    def _scores(self, judge: Judge, sample: Sample, contents: Sequence[Content], counts: Counter[str]) -> np.ndarray:
        """float32 [1 + candidates]: of the positive, then of the candidates; NaN of what cannot be shown."""

        def unshown(place: int, error: BadImage) -> None:
            counts["unshown"] += 1

        counts["pairs"] += 1 + len(contents)
        return judge.scores(
            [(sample.query, content) for content in (sample.positive, *contents)],
            sample.instruction,
            batch_size=self.settings.max_batch_rows,
            max_batch_tokens=self.settings.max_batch_tokens,
            on_bad=unshown,
        )

    def _row(
        self,
        sample: Sample,
        positive_score: float,
        candidates: _Candidates,
        scores: np.ndarray,
        table: SampleTable,
        counts: Counter[str],
    ) -> dict[str, Any] | Rejected:
        own = scores[~np.isnan(scores)]
        rule = self.selection
        places = select_negatives(
            own, positive_score=float(positive_score), beta=rule.beta, step=rule.step, count=rule.count
        )
        counts["fewer"] += len(places) < rule.count
        of_places = [float(own[place]) for place in places]
        if rule.fill == "published" and len(places) < rule.count:
            seed = int.from_bytes(hashlib.sha256(f"{self.seed} {sample.id}".encode()).digest()[:8], "little")
            places, of_places = filled_as_published(places, own, count=rule.count, seed=seed)
        if not places:
            least = positive_score - rule.beta
            return Rejected(sample.id, "no_negative", f"all {len(own)} candidates score above {least:.4f}")
        return {
            "id": sample.id,
            "task": sample.task,
            "modality_combination": f"{sample.query.modality}2{sample.positive.modality}",
            "instruction": sample.instruction,
            "document_instruction": sample.document_instruction,
            "query": to_struct(sample.query),
            "positive": to_struct(sample.positive),
            "negatives": [to_struct(candidates.contents[place]) for place in places],
            "scores": [float(positive_score), *of_places],
            "negative_ids": [table.id_of(int(candidates.positions[place])) for place in places],
        }


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The candidates of a sample, each content once, and never its own positive."""

    positions: np.ndarray
    contents: list[Content] = field(default_factory=list)

    @classmethod
    def of(cls, position: int, positions: np.ndarray, table: SampleTable) -> _Candidates:
        seen = {table.positive_keys[position]}
        chosen: list[int] = []
        for candidate in positions.tolist():
            key = table.positive_keys[candidate]
            if key not in seen:
                seen.add(key)
                chosen.append(candidate)
        return cls(np.array(chosen, np.int64), [table[candidate].positive for candidate in chosen])

    def shown(self, is_shown: np.ndarray) -> _Candidates:
        contents = [content for content, shown in zip(self.contents, is_shown, strict=True) if shown]
        return _Candidates(self.positions[is_shown], contents)
