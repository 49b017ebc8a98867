"""Samples of a file, in the format that its columns identify."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.errors import InputError, first_line
from mme5core.images import BadImage
from mme5core.sample_readers.json_rows import json_rows
from mme5core.sample_readers.judged import FORMAT as JUDGED
from mme5core.sample_readers.ours import FORMAT as OURS
from mme5core.sample_readers.sample_format import PictureFolder, Row, SampleFormat
from mme5core.storage import Address, AnyPath, locate, parquet_file
from mme5core.types import Rejected, Sample

# In this order: the first format whose required columns a file has is taken.
FORMATS: dict[str, SampleFormat] = {"ours": OURS, "judged": JUDGED}
JSON_SUFFIXES = (".json", ".jsonl")
ROWS_PER_BATCH = 64


def read_samples(
    file: AnyPath | str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    format: str | None = None,
    *,
    label: str | None = None,
) -> Iterator[Sample | Rejected]:
    """A sample, or the reason for its refusal, for each row in the file's order.

    Pictures given by path are checked to exist, but not decoded. The id of a row without one is made of the file's name
    and the row's place. The number of negatives may differ between rows.

    Args:
        images: the folder that paths of pictures are relative to.
        format: a name in `FORMATS`; None: the format that the columns identify.
        label: stands for the file in ids of rows without one; None: its name.

    Raises:
        ValueError: the format is unknown.
        InputError: the file cannot be read, or lacks the columns of the format, or of every format.
    """
    shard = file if isinstance(file, Address) else locate(os.fspath(file))
    rows, columns = _rows(shard)
    chosen = _format_of(shard, columns, format)
    return _samples(label or shard.name, rows, chosen, PictureFolder.at(images))


def count_samples(file: AnyPath) -> int:
    """How many rows a file has.

    Raises:
        InputError: as `read_samples`.
    """
    rows, columns = _rows(file)
    _format_of(file, columns, None)
    return sum(1 for _ in rows) if file.suffix.lower() in JSON_SUFFIXES else int(_opened(file).metadata.num_rows)


def _opened(file: AnyPath) -> pq.ParquetFile:
    try:
        return parquet_file(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: cannot be read as Parquet ({first_line(error)})") from None


def _rows(file: AnyPath) -> tuple[Iterator[Row], Sequence[str]]:
    """The rows of a file and the names of its columns; of JSON, those of its first row."""
    if file.suffix.lower() in JSON_SUFFIXES:
        rows = json_rows(file)
        first = next(rows, {})
        return chain([first] if first else [], rows), list(first)
    parquet = _opened(file)
    names = parquet.schema_arrow.names
    known = {column for own in FORMATS.values() for column in (*own.required, *own.optional)}
    batches = parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=[name for name in names if name in known])
    return (row for batch in batches for row in batch.to_pylist()), names


def _format_of(file: AnyPath, columns: Sequence[str], name: str | None) -> SampleFormat:
    if name is not None and name not in FORMATS:
        raise ValueError(f"unknown format of samples {name!r}; known: {sorted(FORMATS)}")
    if not columns:
        raise InputError(f"{file}: there is no sample in it, the file is empty")
    candidates = list(FORMATS.values()) if name is None else [FORMATS[name]]
    missing = [[column for column in known.required if column not in columns] for known in candidates]
    for known, lacks in zip(candidates, missing, strict=True):
        if not lacks:
            return known
    nearest = min(missing, key=len)
    raise InputError(
        f"{file}: no column {nearest[0]!r}; it has {', '.join(columns)}; known formats: {', '.join(sorted(FORMATS))}"
    )


def _samples(
    label: str, rows: Iterator[Row], chosen: SampleFormat, pictures: PictureFolder | None
) -> Iterator[Sample | Rejected]:
    for place, row in enumerate(rows):
        if row.get("id") in (None, ""):
            row["id"] = f"{label}:{place}"
        row["id"] = str(row["id"])
        yield _sample(row, chosen, pictures)


def _sample(row: Row, chosen: SampleFormat, pictures: PictureFolder | None) -> Sample | Rejected:
    try:
        return chosen.to_sample(row, pictures)
    except BadImage as error:
        return Rejected(row["id"], error.reason, error.detail)
    except KeyError as error:
        return Rejected(row["id"], "bad_content", f"no field {error}")
    except (ValueError, TypeError, AttributeError) as error:
        return Rejected(row["id"], "bad_content", str(error))
