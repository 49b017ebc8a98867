"""From mined candidates to samples with judged hard negatives, by a judge in this process: one block of samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mme5core.images import BadImage
from mme5core.judge.candidates import JudgeTables, ToJudge
from mme5core.judge.judged_rows import NO_CANDIDATE, JudgedRows
from mme5core.judge.settings import JudgeSettings
from mme5core.parts import NewPart
from mme5core.schemas import JUDGED
from mme5core.tasks import Item
from mme5core.types import Rejected

if TYPE_CHECKING:
    from mme5core.judge.local import Judge

COUNTS = ("kept", "pairs", "wrong_positives", "fewer", "unshown")
""""pairs" are judged ones, "unshown" candidates that the judge cannot be shown; the others count samples."""


@dataclass(frozen=True, slots=True)
class JudgeBlock:
    """Judges a block of samples and writes it as a part; travels to the workers.

    Args:
        folder: of the parts.
    """

    to_judge: ToJudge
    rows: JudgedRows
    folder: Path
    settings: JudgeSettings

    def load(self, device: str) -> tuple[Judge, JudgeTables]:
        """
        Raises:
            ValueError: as `Judge.load`.
        """
        from mme5core.judge.local import Judge  # torch, which the driver does not need

        own = self.settings
        judge = Judge.load(own.model, device, own.dtype, adapter=own.adapter, remote_code=own.remote_code)
        return judge, self.to_judge.tables()

    def work(self, item: Item, loaded: tuple[Judge, JudgeTables]) -> Item:
        """The report on the samples from "start" to "stop" of an item, with COUNTS."""
        counts = Counter[str]()
        with NewPart(self.folder, JUDGED) as part:
            for position in range(item["start"], item["stop"]):
                row = self._judged(position, *loaded, counts)
                if isinstance(row, Rejected):
                    part.refused.append(row)
                else:
                    counts["kept"] += 1
                    part.writer.write_table(pa.Table.from_pylist([row], JUDGED))
            return item | {name: counts[name] for name in COUNTS} | part.close()

    def _judged(
        self, position: int, judge: Judge, tables: JudgeTables, counts: Counter[str]
    ) -> dict[str, Any] | Rejected:
        sample, candidates = self.to_judge.contents(position, tables)
        if not candidates:
            return Rejected(sample.id, "no_candidate", NO_CANDIDATE)

        def unshown(place: int, error: BadImage) -> None:
            counts["unshown"] += 1

        scores = judge.scores(
            [(sample.query, content) for content in (sample.positive, *candidates)],
            sample.instruction,
            batch_size=self.settings.max_batch_rows,
            max_batch_tokens=self.settings.max_batch_tokens,
            on_bad=unshown,
        )
        counts["pairs"] += int((~np.isnan(scores)).sum())
        ids = [tables.candidate_id(int(candidate)) for candidate in self.to_judge.plan.candidates(position)]
        return self.rows.row(sample, candidates, ids, scores, counts)
