"""What is judged: samples, and their candidates, which are other samples' positives or rows of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mme5core.corpus.content_table import ContentTable
from mme5core.judge.plan import JudgePlan
from mme5core.sample_table import SampleTable
from mme5core.types import Content, Sample


class JudgeTables:
    """
    Args:
        samples: the file of a `SampleTable`.
        candidates: files of a `ContentTable`; None: the positives of the samples.
    """

    def __init__(self, samples: Path, candidates: tuple[Path, ...] | None) -> None:
        self.samples = SampleTable(samples)
        self._corpus = None if candidates is None else ContentTable(candidates)

    def candidate(self, position: int) -> Content:
        return self.samples[position].positive if self._corpus is None else self._corpus.content(position)

    def candidate_id(self, position: int) -> str:
        return self.samples.id_of(position) if self._corpus is None else self._corpus.id_of(position)

    def candidate_ids(self) -> pa.Array | None:
        """None: those of the samples."""
        return None if self._corpus is None else self._corpus.ids()

    def candidate_keys(self) -> list[bytes]:
        return self.samples.positive_keys if self._corpus is None else self._corpus.keys()


@dataclass(frozen=True, slots=True)
class ToJudge:
    """Samples with their candidates; travels to the workers.

    Args:
        samples, candidates: see `JudgeTables`.
        samples_per_file: of an output file.
    """

    samples: Path
    candidates: tuple[Path, ...] | None
    plan: JudgePlan
    samples_per_file: int

    def tables(self) -> JudgeTables:
        return JudgeTables(self.samples, self.candidates)

    def contents(self, position: int, tables: JudgeTables) -> tuple[Sample, list[Content]]:
        """A sample and its candidates, nearest first."""
        candidates = [tables.candidate(int(candidate)) for candidate in self.plan.candidates(position)]
        return tables.samples[position], candidates

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last but one sample of each output file."""
        num_samples = len(self.plan.starts) - 1
        for start in range(0, num_samples, self.samples_per_file):
            yield start, min(start + self.samples_per_file, num_samples)
