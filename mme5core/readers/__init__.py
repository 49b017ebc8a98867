"""Corpora on disk, in whatever format: from paths to shards, from a shard to rows."""

from mme5core.readers.rows import CorpusRow, read_rows
from mme5core.readers.shards import InputError, find_shards, input_identity

__all__ = ["CorpusRow", "InputError", "find_shards", "input_identity", "read_rows"]
