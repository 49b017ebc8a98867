"""What `judge` would do: samples, neighbours, output."""

from __future__ import annotations

from mme5core.sample_readers import count_samples
from mme5core.sample_readers.files import sample_files
from mme5core.storage import parquet_file
from rayjobs.judge.config import JudgeConfig
from rayjobs.judge.inputs import candidate_shards, judge_folder, neighbour_files
from rayjobs.preview_lines import output_lines


def preview(config: JudgeConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    samples, neighbours, candidates = sample_files(config.input), neighbour_files(config), candidate_shards(config)
    num_samples = sum(count_samples(file) for file in samples)
    num_pairs = sum(parquet_file(file).metadata.num_rows for file in neighbours)
    num_samples = min(num_samples, config.limit or num_samples)
    return [
        f"{num_samples:,} samples, {num_pairs:,} neighbours: at most {num_samples + num_pairs:,} pairs to judge",
        *output_lines(config.output, judge_folder(config, samples, neighbours, candidates)),
    ]
