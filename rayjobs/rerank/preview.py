"""What `rerank` and `rerank train` would do: inputs, output."""

from __future__ import annotations

from mme5core.sample_readers import count_samples
from mme5core.storage import parquet_file
from rayjobs.preview_lines import file_lines, output_lines
from rayjobs.rerank.config import RerankConfig, RerankTrainConfig
from rayjobs.rerank.inputs import (
    check_training,
    neighbour_files,
    rerank_folder,
    side_of,
    training_folder,
)
from rayjobs.training import check_batches, sources_of


def preview(config: RerankConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    queries, candidates, neighbours = side_of(config, "query"), side_of(config, "target"), neighbour_files(config)
    num_pairs = sum(parquet_file(file).metadata.num_rows for file in neighbours)
    return [
        *file_lines(queries.shards),
        *file_lines(candidates.shards),
        f"{num_pairs:,} neighbours, of which the first {config.top_k} of each query are reordered",
        *output_lines(config.output, rerank_folder(config, queries, candidates, neighbours)),
    ]


def preview_training(config: RerankTrainConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    sources = sources_of(config)
    shards = [shard for files in sources.values() for shard in files]
    check_training(config)
    rows = sum(count_samples(shard) for shard in shards)
    rows = min(rows, config.limit or rows)
    check_batches(config, rows)
    steps = config.num_steps or max(1, int(config.num_epochs * rows / config.batch_size))
    return [
        *file_lines(shards),
        f"{rows:,} samples before any is refused; about {steps:,} steps",
        *output_lines(config.output, training_folder(config, sources)),
    ]
