"""The files that `synth` has written, as its verbs read them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.errors import InputError, first_line
from mme5core.schemas import SAMPLES
from mme5core.storage import AnyPath, parquet_file
from mme5core.tables import shards_of
from rayjobs.folder import MANIFEST

KINDS = ("task", "modality_combination", "language")


def sample_files(folder: str) -> list[AnyPath]:
    """The files of samples that `synth` wrote; none where it kept nothing."""
    files = shards_of([folder], suffixes=(".parquet",))
    for file in files:
        missing = [name for name in SAMPLES.names if name not in open_samples(file).schema_arrow.names]
        if missing:
            raise InputError(f"{file}: no samples as synth writes them, it has no column {missing[0]!r}")
    return files


def open_samples(file: AnyPath) -> pq.ParquetFile:
    try:
        return parquet_file(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: cannot be read as Parquet ({first_line(error)})") from None


def pending_hint(folder: str) -> str:
    """What to say of a folder in which samples are pending still."""
    try:
        pending = json.loads((Path(folder) / MANIFEST).read_text())["counters"]["pending"]
    except (OSError, ValueError, LookupError):
        return ""
    return f"; {pending:,} are pending still: run synth again to have them too" if pending else ""
