"""The samples of a job as one mapped file, made once: what trainings and `judge` share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mme5core.durable import write_json
from mme5core.progress import Progress
from mme5core.sample_table import map_samples
from mme5core.storage import AnyPath
from mme5core.types import Rejected


def map_once(
    sources: Mapping[str, Sequence[AnyPath]],
    file: Path,
    *,
    job: str,
    num_negatives: int,
    limit: int | None,
    least_negatives: int | None = None,
    needs_scores: bool = False,
    images: str | None = None,
) -> tuple[list[Rejected], int]:
    """Map the samples to a file unless an earlier run has; what was refused, which is kept beside it, and rows read.

    Args:
        sources, num_negatives, limit, least_negatives, needs_scores, images: see `map_samples`.
    """
    refusals = file.parent / "refused.json"
    if not refusals.is_file():
        num_read, refused = 0, list[Rejected]()
        with Progress(f"{job}: reading", 0, "samples") as progress:
            for report in map_samples(
                sources,
                file,
                num_negatives=num_negatives,
                least_negatives=least_negatives,
                limit=limit,
                needs_scores=needs_scores,
                images=images,
            ):
                if isinstance(report, list):
                    refused = report
                else:
                    num_read = report
                    progress.update(num_read)
        write_json(refusals, {"read": num_read, "refused": [asdict(rejected) for rejected in refused]})
    stored = json.loads(refusals.read_text())
    return [Rejected(**row) for row in stored["refused"]], stored["read"]
