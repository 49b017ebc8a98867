"""The files of samples that an input names."""

from __future__ import annotations

from collections.abc import Sequence

from mme5core.sample_readers.reading import JSON_SUFFIXES
from mme5core.storage import AnyPath
from mme5core.tables import shards_of


def sample_files(inputs: Sequence[str]) -> list[AnyPath]:
    """Files and globs as they are named, JSON ones too; of folders the Parquet files, since notes lie beside them.

    Raises:
        InputError: naming the input for which there is no file.
    """
    files: list[AnyPath] = []
    for entry in inputs:
        names_json = entry.lower().endswith(JSON_SUFFIXES)
        named = shards_of([entry], suffixes=JSON_SUFFIXES if names_json else (".parquet",))
        files += [file for file in named if file not in files]
    return files
