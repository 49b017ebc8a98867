"""The reader of each format, chosen by the file's suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mme5core.errors import first_line
from mme5core.readers.corpus_row import AS_IT_IS, CorpusRow, ReadOptions, refuse
from mme5core.readers.img2dataset import read as read_tar
from mme5core.readers.jsonl import read as read_jsonl
from mme5core.readers.pictures import read as read_folder
from mme5core.readers.table import read as read_parquet
from mme5core.storage import AnyPath, without_credentials

READERS: dict[str, Callable[[AnyPath, ReadOptions], Iterator[CorpusRow]]] = {
    ".tar": read_tar,
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
}


def read_rows(shard: AnyPath, options: ReadOptions = AS_IT_IS) -> Iterator[CorpusRow]:
    """Every row of a shard in its order, refused ones with their reason.

    A shard that cannot be read to its end gives the rows before the break, then a refused one named after the shard.

    Raises:
        ValueError: an unknown format.
    """
    suffix = shard.suffix.lower()
    if suffix not in READERS and not shard.is_dir():
        raise ValueError(f"unknown format {shard.suffix!r} of {shard}; known: {sorted(READERS)}")
    return _whole(READERS.get(suffix, read_folder)(shard, options), shard, options)


def _whole(rows: Iterator[CorpusRow], shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """The rows; what a reader raises ends its shard, not the job."""
    try:
        yield from rows
    except Exception as error:
        problem = getattr(error, "strerror", None) or first_line(error)
        yield refuse(options.name(shard), "broken_shard", without_credentials(problem))


__all__ = ["AS_IT_IS", "CorpusRow", "ReadOptions", "read_rows"]
