"""Corpora scanned as the jobs do it, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.readers import ReadOptions
from mme5core.storage import AnyPath
from rayjobs.scan import Index, KeyOf, ScanShard, _find_duplicates, _totals


def indexed(folder: Path, shards: Sequence[AnyPath], key_of: KeyOf, *, columns: tuple[str, ...] = ()) -> Index:
    """The index of the shards, in a folder of its own."""
    index = folder / "index"
    index.mkdir()
    for number, shard in enumerate(shards):
        batch = pa.table({"shard": [number], "path": [str(shard)], "label": [""]})
        counts = list(ScanShard(index, key_of, options=ReadOptions(columns=columns))(batch))
        assert all(count["failure"] == [""] for count in counts)
    sizes = [pq.read_metadata(index / f"{number:06d}.parquet").num_rows for number in range(len(shards))]
    starts = np.cumsum([0, *sizes])
    _find_duplicates(index, starts)
    return Index(list(shards), index, starts, *_totals(index, starts))
