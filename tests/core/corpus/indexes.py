"""Corpora scanned as the jobs do it, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mme5core.corpus.index import Index
from mme5core.corpus.scan import KeyOf, ScanShard, count_usable, find_duplicates
from mme5core.readers import AS_IT_IS, ReadOptions
from mme5core.storage import AnyPath


def indexed(folder: Path, shards: Sequence[AnyPath], key_of: KeyOf, *, options: ReadOptions = AS_IT_IS) -> Index:
    """The index of the shards, in a folder of its own."""
    index = folder / "index"
    index.mkdir()
    for number, shard in enumerate(shards):
        item = {"shard": number, "path": str(shard), "label": ""}
        list(ScanShard(index, key_of, options=options)(item))
    sizes = [pq.read_metadata(index / f"{number:06d}.parquet").num_rows for number in range(len(shards))]
    starts = np.cumsum([0, *sizes])
    find_duplicates(index, starts)
    return Index(list(shards), index, starts, count_usable(index, starts))
