"""What `embed-corpus` would do: rows, width, output."""

from __future__ import annotations

import pyarrow as pa

from mme5core.errors import InputError, first_line
from mme5core.storage import parquet_file
from rayjobs.embed_corpus.config import EmbedCorpusConfig
from rayjobs.embed_corpus.inputs import checked_format, corpus_shards, embed_folder
from rayjobs.preview_lines import file_lines, output_lines


def preview(config: EmbedCorpusConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    shards = corpus_shards(config)
    try:
        rows = sum(parquet_file(shard).metadata.num_rows for shard in shards if shard.suffix == ".parquet")
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"input: {first_line(error)}") from None
    return [
        *file_lines(shards),
        *([f"{rows:,} rows in Parquet"] if rows else []),
        f"vectors of width {checked_format(config).dim:,}",
        *output_lines(config.output, embed_folder(config, shards)),
    ]
