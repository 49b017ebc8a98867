"""A plain folder of pictures, one row for each; the id of a row is the picture's path below the folder."""

from __future__ import annotations

from collections.abc import Iterator

from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse, writable
from mme5core.readers.shards import pictures_in
from mme5core.storage import AnyPath


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """A row for each picture of the folder and its subfolders."""
    for path, file in pictures_in(shard):
        name = f"{options.label}/{path}" if options.label else path
        try:
            yield CorpusRow(writable(name), image=file.read_bytes())
        except OSError as error:
            yield refuse(name, "missing_image", error.strerror or str(error))
