"""What the driver and the processes of a training run agree on: names in its folder, and the order of its batches."""

from __future__ import annotations

from pathlib import Path

from mme5core.sample_table import SampleTable
from mme5core.training.sampling import BatchSampler
from mme5core.training.settings import TrainingSettings

LOG = Path("log") / "metrics.jsonl"
SAMPLES_FILE = "samples.arrow"
SUMMARY = "summary.json"
REFUSED = "refused_setting.json"


def make_sampler(samples: SampleTable, settings: TrainingSettings) -> BatchSampler:
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
