"""JSON lines of texts and pictures, one object for each row."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse
from mme5core.readers.table import choose_columns, row_of
from mme5core.storage import AnyPath


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """Rows of one file, with the same column names as Parquet files; pictures are given by paths."""
    with shard.open("rb") as stream:
        for position, line in enumerate(stream):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                yield refuse(f"{options.label or shard.name}:{position}", "not_json", str(error))
                continue
            if not isinstance(record, dict):
                yield refuse(f"{options.label or shard.name}:{position}", "not_an_object", type(record).__name__)
                continue
            columns = choose_columns(list(record))
            yield row_of(record, columns, shard, position, options)
