"""What `rerank` and `rerank train` would do: inputs, output."""

from __future__ import annotations

from mme5core.storage import parquet_file
from rayjobs.preview_lines import file_lines, output_lines
from rayjobs.rerank.config import RerankConfig, RerankTrainConfig
from rayjobs.rerank.inputs import (
    TRAINING,
    check_training,
    neighbour_files,
    rerank_folder,
    side_of,
)
from rayjobs.training import preview_run, run_folder, sources_of


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
    check_training(config)
    return preview_run(config, sources, run_folder(TRAINING, config, sources))
