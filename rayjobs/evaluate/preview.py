"""What `evaluate` would do: queries, candidates, output."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from rayjobs.evaluate.config import EvaluateConfig
from rayjobs.evaluate.inputs import evaluate_folder
from rayjobs.preview_lines import output_lines


def preview(config: EvaluateConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    folder = evaluate_folder(config)
    files = {part: Path(config.benchmark) / f"{part}.parquet" for part in ("queries", "candidates")}
    lines = [f"{pq.read_metadata(file).num_rows:,} {part} in {file}" for part, file in files.items()]
    return lines + output_lines(config.output, folder)
