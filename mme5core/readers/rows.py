"""One row of a corpus, and the reader of each format, chosen by the file's suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mme5core.readers.corpus_row import AS_IT_IS, CorpusRow, ReadOptions
from mme5core.readers.img2dataset import read as read_tar
from mme5core.readers.jsonl import read as read_jsonl
from mme5core.readers.pictures import read as read_folder
from mme5core.readers.table import read as read_parquet
from mme5core.storage import AnyPath

READERS: dict[str, Callable[[AnyPath, ReadOptions], Iterator[CorpusRow]]] = {
    ".tar": read_tar,
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
}


def read_rows(shard: AnyPath, options: ReadOptions = AS_IT_IS) -> Iterator[CorpusRow]:
    """Every row of a shard in its order, refused ones with their reason.

    A truncated shard ends with a refused row named after the shard, after the rows before the break.

    Raises:
        ValueError: an unknown format.
    """
    suffix = shard.suffix.lower()
    if suffix not in READERS and shard.is_dir():
        return read_folder(shard, options)
    if suffix not in READERS:
        raise ValueError(f"unknown format {shard.suffix!r} of {shard}; known: {sorted(READERS)}")
    return READERS[suffix](shard, options)


__all__ = ["AS_IT_IS", "CorpusRow", "ReadOptions", "read_rows"]
