"""What `train` would do: samples, steps, output."""

from __future__ import annotations

from mme5core.sample_readers import count_samples
from rayjobs.preview_lines import file_lines, output_lines
from rayjobs.train.config import TrainConfig
from rayjobs.train.inputs import check, train_folder
from rayjobs.training import check_batches, sources_of


def preview(config: TrainConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    sources = sources_of(config)
    shards = [shard for files in sources.values() for shard in files]
    check(config)
    rows = sum(count_samples(shard) for shard in shards)
    rows = min(rows, config.limit or rows)
    check_batches(config, rows)
    steps = config.num_steps or max(1, int(config.num_epochs * rows / config.batch_size))
    return [
        *file_lines(shards),
        f"{rows:,} samples before any is refused; about {steps:,} steps",
        *output_lines(config.output, train_folder(config, sources)),
    ]
