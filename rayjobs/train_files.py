"""What a training run's driver and workers agree on: file names in its folder, and the order of its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mme5core.sample_table import SampleTable
from mme5core.sampling import BatchSampler

LOG = Path("log") / "metrics.jsonl"
SUMMARY = "summary.json"
OWNER = "owner"
REFUSED = "refused_setting.json"


def make_sampler(samples: SampleTable, config: dict[str, Any]) -> BatchSampler:
    weights = config["weights"]
    return BatchSampler(
        samples.combinations,
        samples.positive_keys,
        batch_size=config["batch_size"],
        seed=config["seed"],
        sources=samples.sources,
        weights=None if weights is None else {f"input[{place}]": weight for place, weight in enumerate(weights)},
        interleave_rows=config["interleave_rows"],
    )


def check_owner(work: Path, owner: str) -> None:
    """Stop the workers of a run whose driver was killed: they may live on while the next run is under way.

    Raises:
        RuntimeError: the folder belongs to another run by now.
    """
    try:
        found = (work / OWNER).read_text()
    except FileNotFoundError:
        found = ""
    if found != owner:
        raise RuntimeError("another run of this folder has taken over")
