"""What the driver and the processes of a training run agree on: names in its folder, its log, its batches' order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mme5core.sample_table import SampleTable
from mme5core.training.sampling import BatchSampler
from mme5core.training.settings import RunSettings

LOG = Path("log") / "metrics.jsonl"
SAMPLES_FILE = "samples.arrow"
SUMMARY = "summary.json"


def ended_file(work: Path, owner: str) -> Path:
    """Where the processes of a run say why they ended before the last step (`ending`); another run has another."""
    return work / f"ended-{owner}.json"


def stop_file(work: Path, owner: str) -> Path:
    """A file with which the driver of a run asks its processes to save and end."""
    return work / f"stop-{owner}"


def make_sampler(samples: SampleTable, settings: RunSettings) -> BatchSampler:
    """
    Raises:
        ValueError: no batch can be made of the samples, or a weight has no rows.
    """
    weights = settings.weights
    return BatchSampler(
        samples.combinations,
        samples.positive_keys,
        batch_size=settings.batch_size,
        seed=settings.seed,
        sources=samples.sources,
        weights=None if weights is None else {f"input[{place}]": weight for place, weight in enumerate(weights)},
        interleave_rows=settings.interleave_rows,
    )


def whole_lines(text: str) -> list[dict[str, Any]]:
    """The steps of a log; lines that a kill or a shared file system has cut are left out."""
    lines = []
    for line in text.splitlines():
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if isinstance(step, dict) and {"step", "loss", "rows", "seconds"} <= step.keys():
            lines.append(step)
    return lines
