"""One row of a corpus, and the reader of each format, chosen by the file's suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mme5core.readers import img2dataset, jsonl, pictures, table
from mme5core.readers.corpus_row import AS_IT_IS, CorpusRow, ReadOptions
from mme5core.storage import AnyPath

READERS: dict[str, Callable[[AnyPath, ReadOptions], Iterator[CorpusRow]]] = {
    ".tar": img2dataset.read,
    ".parquet": table.read,
    ".jsonl": jsonl.read,
}


def read_rows(shard: AnyPath, options: ReadOptions = AS_IT_IS) -> Iterator[CorpusRow]:
    """Every row of a shard in its order, bad ones with their reason; a shard that breaks off ends with a
    refused row of its own name, after all the rows before the break."""
    suffix = shard.suffix.lower()
    if suffix not in READERS and shard.is_dir():
        return pictures.read(shard, options)
    if suffix not in READERS:
        raise ValueError(f"unknown format {shard.suffix!r} of {shard}; known: {sorted(READERS)}")
    return READERS[suffix](shard, options)


__all__ = ["AS_IT_IS", "CorpusRow", "ReadOptions", "read_rows"]
