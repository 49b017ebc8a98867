"""Parquet files of a known schema that a setting names, read in parts, with errors that name the setting."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from mme5core.errors import InputError, WorkFailed, first_line
from mme5core.readers.shards import find_shards
from mme5core.storage import AnyPath, parquet_file

ROWS_AT_ONCE = 1 << 16


def shards_of(inputs: Sequence[str], **options: Any) -> list[AnyPath]:
    """`find_shards`; what it passes over is said on stderr.

    Raises:
        InputError: naming the input for which there is no file.
    """
    return find_shards(inputs, note=lambda line: print(line, file=sys.stderr), **options)


def files_with(path: str, schema: pa.Schema, setting: str) -> list[AnyPath]:
    """The files of a Parquet file or folder that have the columns of a schema.

    Args:
        setting: the key that names the path, for messages.

    Raises:
        InputError: there is none, a file cannot be read, lacks a column, or has one of another type.
    """
    try:
        files = shards_of([path], suffixes=(".parquet",))
    except InputError as error:
        raise InputError(str(error).replace("input", setting, 1)) from None
    for file in files:
        with errors_name_setting(setting, file):
            columns = parquet_file(file).schema_arrow
            for name in schema.names:
                count = columns.names.count(name)
                if count != 1:
                    has = f"has {count or 'no'} column{'s' * (count > 1)} {name!r}"
                    raise InputError(f"{setting} {str(file)!r} {has}; its columns are {', '.join(columns.names)}")
            _cast(columns.empty_table(), schema)
    return files


def column_tables(
    file: AnyPath, schema: pa.Schema, setting: str, *, groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """The columns of a schema, a part at a time, of some row groups or of all.

    Raises:
        InputError: a part cannot be read, or an entry cannot be of the schema's type.
    """
    with errors_name_setting(setting, file):
        for batch in parquet_file(file).iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=schema.names):
            yield _cast(pa.table(batch), schema)


@contextlib.contextmanager
def errors_name_setting(setting: str, file: AnyPath) -> Iterator[None]:
    """Turns errors of reading a file into errors of the setting that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        message = f"{setting} {str(file)!r} cannot be read ({first_line(error)})"
        # Parquet raises OSError without a number for bad content too.
        is_lasting = not isinstance(error, OSError) or error.errno in (None, errno.ENOENT, errno.EACCES)
        raise (InputError if is_lasting else WorkFailed)(message) from None


def of_size(tables: Iterable[pa.Table], rows: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` each (the last may have fewer); one empty table if there are none."""
    waiting = [schema.empty_table()]
    num_waiting = num_given = 0
    for table in tables:
        waiting.append(table)
        num_waiting += table.num_rows
        while num_waiting >= rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, rows).combine_chunks()
            num_given += 1
            waiting = [whole.slice(rows)]
            num_waiting -= rows
    if num_waiting or not num_given:
        yield pa.concat_tables(waiting).combine_chunks()


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, of its types.

    Raises:
        pa.ArrowInvalid: naming the column that cannot be cast.
    """
    columns = []
    for field in schema:
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowException as error:
            raise pa.ArrowInvalid(f"column {field.name!r}: {first_line(error)}") from None
    return pa.Table.from_arrays(columns, schema=schema)
