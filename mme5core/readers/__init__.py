"""Corpora on disk, in whatever format: from paths to shards, from a shard to rows."""

from mme5core.errors import InputError
from mme5core.readers.picture_at import read_picture
from mme5core.readers.rows import AS_IT_IS, CorpusRow, ReadOptions, read_rows
from mme5core.readers.shards import find_shards, input_files, input_identity

__all__ = [
    "AS_IT_IS",
    "CorpusRow",
    "InputError",
    "ReadOptions",
    "find_shards",
    "input_files",
    "input_identity",
    "read_picture",
    "read_rows",
]
