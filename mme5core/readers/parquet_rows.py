"""Rows of a Parquet file as records, in batches that fit memory, whatever the cells hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_ONCE = 256
BYTES_AT_ONCE = 1 << 26
MOST_BYTES = 1 << 30


def records_of(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows in order, as dictionaries of the columns.

    A cell that has no equal in Python, such as a date in the year 294247, comes as its text.

    Raises:
        pa.ArrowException, OSError: from the row on that cannot be read.
    """
    for group in range(file.metadata.num_row_groups):
        num_given, rows = 0, rows_at_once(file, group, columns)
        while rows:
            try:
                for batch in _batches(file, group, columns, rows, skip=num_given):
                    yield from _records(batch)
                    num_given += batch.num_rows
                break
            except pa.ArrowNotImplementedError:
                # Arrow cannot give nested columns of more than 2 GB in one batch.
                if rows == 1:
                    raise
                rows = max(1, rows // 8)


def rows_at_once(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> int:
    """How many rows of a row group make about BYTES_AT_ONCE, by its metadata, and never more than MOST_BYTES.

    A cell of a column with a dictionary may be as large as all of the column in the file, and so may each of its rows.
    """
    metadata = file.metadata.row_group(group)
    roots = set(columns)
    chunks = [metadata.column(place) for place in range(metadata.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in roots]
    per_row = sum(chunk.total_uncompressed_size for chunk in chunks) / max(1, metadata.num_rows)
    largest = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.has_dictionary_page)
    rows = min(ROWS_AT_ONCE, int(BYTES_AT_ONCE / max(1.0, per_row)), int(MOST_BYTES / max(1, largest)))
    return max(1, rows)


def _batches(
    file: pq.ParquetFile, group: int, columns: Sequence[str], rows: int, *, skip: int
) -> Iterator[pa.RecordBatch]:
    for batch in file.iter_batches(rows, row_groups=[group], columns=list(columns)):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        yield batch.slice(skip)
        skip = 0


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except (ArithmeticError, ValueError):
        names = batch.schema.names
        for row in range(batch.num_rows):
            yield {name: _cell(column[row]) for name, column in zip(names, batch.columns, strict=True)}


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (ArithmeticError, ValueError):
        for kind in (pa.binary(), pa.string()):  # a string that is no UTF-8, a date beyond the calendar
            try:
                return scalar.cast(kind).as_py()
            except (pa.ArrowException, ValueError):
                continue
        return None
