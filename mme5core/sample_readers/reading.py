"""Samples of a Parquet file, in the format that its columns identify."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.errors import InputError, first_line
from mme5core.images import BadImage
from mme5core.sample_readers.ours import FORMAT as OURS
from mme5core.sample_readers.sample_format import PictureFolder, Row, SampleFormat
from mme5core.storage import Address, AnyPath, locate, parquet_file
from mme5core.types import Rejected, Sample

# In this order: the first format whose required columns a file has is taken.
FORMATS: dict[str, SampleFormat] = {"ours": OURS}
ROWS_PER_BATCH = 64


def read_samples(
    file: AnyPath | str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    format: str | None = None,
) -> Iterator[Sample | Rejected]:
    """A sample, or the reason for its refusal, for each row in the file's order.

    Pictures given by path are checked to exist, but not decoded. The id of a row without one is made of the file's name
    and the row's place. The number of negatives may differ between rows.

    Args:
        images: the folder that paths of pictures are relative to.
        format: a name in `FORMATS`; None: the format that the columns identify.

    Raises:
        ValueError: the format is unknown.
        InputError: the file cannot be read, or lacks the columns of the format, or of every format.
    """
    shard = file if isinstance(file, Address) else locate(os.fspath(file))
    parquet = open_samples(shard, format)
    chosen = _format_of(shard, parquet.schema_arrow.names, format)
    return _samples(shard, parquet, chosen, PictureFolder.at(images))


def open_samples(file: AnyPath, format: str | None = None) -> pq.ParquetFile:
    """The opened file, checked to have the columns of a format.

    Raises:
        ValueError, InputError: as `read_samples`.
    """
    try:
        parquet = parquet_file(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: cannot be read as Parquet ({first_line(error)})") from None
    _format_of(file, parquet.schema_arrow.names, format)
    return parquet


def _format_of(file: AnyPath, columns: Sequence[str], name: str | None) -> SampleFormat:
    if name is not None and name not in FORMATS:
        raise ValueError(f"unknown format of samples {name!r}; known: {sorted(FORMATS)}")
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
    file: AnyPath, parquet: pq.ParquetFile, chosen: SampleFormat, pictures: PictureFolder | None
) -> Iterator[Sample | Rejected]:
    names = parquet.schema_arrow.names
    columns = [name for name in (*chosen.required, *chosen.optional) if name in names]
    place = 0
    for batch in parquet.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
        for row in batch.to_pylist():
            if row.get("id") in (None, ""):
                row["id"] = f"{file.name}:{place}"
            row["id"] = str(row["id"])
            yield _sample(row, chosen, pictures)
            place += 1


def _sample(row: Row, chosen: SampleFormat, pictures: PictureFolder | None) -> Sample | Rejected:
    try:
        return chosen.to_sample(row, pictures)
    except BadImage as error:
        return Rejected(row["id"], error.reason, error.detail)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Rejected(row["id"], "bad_content", str(error))
