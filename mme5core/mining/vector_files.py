"""Sets of vectors on disk: Parquet files of `id` and `embedding`, as `embed-corpus` or others write them."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.errors import InputError, first_line
from mme5core.mining.id_order import IdOrder, IdTwice
from mme5core.schemas import CONTENT_COLUMNS
from mme5core.storage import locate, parquet_file
from mme5core.tables import errors_name_setting, shards_of
from mme5core.vectors import matrix_of

_NULL = "\0null "
_TYPES = {"id": pa.string(), "embedding": pa.list_(pa.float32())} | {
    field.name: field.type for field in CONTENT_COLUMNS
}


@dataclass(frozen=True, slots=True)
class VectorFiles:
    """Vectors in files, their rows numbered over all of them; travels to the tasks.

    Args:
        setting: the key that names them, for messages.
        starts: int64 [files + 1]: the number of each file's first row, and the count at the end.
        model: what names the model that made them; empty where the files do not say.
        columns: that every file has.
    """

    setting: str
    paths: tuple[str, ...]
    starts: np.ndarray
    width: int
    model: str
    columns: frozenset[str]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @classmethod
    def open(cls, inputs: Sequence[str], setting: str, *, without: str | None = None) -> VectorFiles:
        """
        Args:
            without: a folder below the inputs that is left out: the job's output may lie there.

        Raises:
            InputError: there are no such files, they hold no vectors, of several widths, or of several models.
        """
        try:
            files = shards_of(inputs, suffixes=(".parquet",), without=without)
        except InputError as error:
            raise InputError(str(error).replace("input", setting, 1)) from None
        sizes, widths, models = [], dict[int, str](), dict[str, str]()
        columns: set[str] | None = None
        for file in files:
            with errors_name_setting(setting, file):
                parquet = parquet_file(file)
                schema = parquet.schema_arrow
                if missing := {"id", "embedding"} - set(schema.names):
                    names = ", ".join(schema.names)
                    raise InputError(f"{setting} {str(file)!r} has no column {min(missing)!r}; its columns are {names}")
                if twice := next((name for name in schema.names if schema.names.count(name) > 1), None):
                    raise InputError(f"{setting} {str(file)!r}: two columns are called {twice!r}")
                sizes.append(parquet.metadata.num_rows)
                if width := _width(parquet, schema.field("embedding").type):
                    widths.setdefault(width, str(file))
            model = (schema.metadata or {}).get(b"mme5.model_identity", b"").decode(errors="replace")
            if model:
                models.setdefault(model, str(file))
            if sizes[-1]:
                lacking = {field.name for field in CONTENT_COLUMNS} & (columns or set()) - set(schema.names)
                for name in sorted(lacking):
                    print(f"{setting}: {file} has no {name}, so none is looked at", file=sys.stderr)
                columns = set(schema.names) if columns is None else columns & set(schema.names)
        for what, several in (("widths", widths), ("models", models)):
            if len(several) > 1:
                (_, one), (_, other), *_ = several.items()
                raise InputError(f"{setting}: {one} and {other} hold vectors of different {what}")
        if not widths:
            raise InputError(f"{setting} {', '.join(inputs)}: no vectors")
        starts = np.cumsum([0, *sizes])
        model = next(iter(models), "")
        return cls(setting, tuple(map(str, files)), starts, next(iter(widths)), model, frozenset(columns or ()))

    def tables(
        self, columns: Sequence[str], *, start: int = 0, stop: int | None = None, rows: int = 1 << 16
    ) -> Iterator[tuple[int, pa.Table]]:
        """(number of its first row, some rows) from `start` to `stop`, at most `rows` at a time.

        Raises:
            InputError, WorkFailed: a file cannot be read.
        """
        stop = len(self) if stop is None else min(stop, len(self))
        for path, file_start, file_stop in zip(self.paths, self.starts[:-1], self.starts[1:], strict=True):
            if file_stop <= start or file_start >= stop:
                continue
            with errors_name_setting(self.setting, locate(path)):
                parquet = parquet_file(locate(path))
                begun = int(file_start)
                for group in range(parquet.num_row_groups):
                    size = parquet.metadata.row_group(group).num_rows
                    if begun + size > start and begun < stop:
                        here = begun
                        for batch in parquet.iter_batches(rows, row_groups=[group], columns=list(columns)):
                            low, high = max(start - here, 0), min(stop - here, len(batch))
                            if high > low:
                                yield here + low, _typed(pa.table(batch.slice(low, high - low)), here + low)
                            here += len(batch)
                    begun += size

    def has(self, columns: Collection[str]) -> bool:
        return self.columns >= set(columns)


def check_distinct_ids(vectors: VectorFiles, num_rows: int, work: Path) -> None:
    """
    Raises:
        InputError: two of the first rows have one id.
    """
    folder = work / f"ids-{uuid.uuid4().hex}"
    ids = (table["id"] for _, table in vectors.tables(["id"], stop=num_rows))
    try:
        IdOrder.write(ids, num_rows, folder)
    except IdTwice as error:
        raise InputError(f"{vectors.setting}: two have the id {str(error)[:100]!r}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def matrix(table: pa.Table, width: int) -> np.ndarray:
    """float32 [rows, width]; a row without a vector, or with one of another width, is NaN throughout.

    >>> matrix(pa.table({"embedding": [[1.0, 2.0], None]}), 2)
    array([[ 1.,  2.],
           [nan, nan]], dtype=float32)
    """
    column = table["embedding"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), -1)
    fits = np.asarray(lengths) == width
    if fits.all():
        return matrix_of(column)
    vectors = np.full((len(column), width), np.nan, np.float32)
    if fits.any():
        vectors[fits] = matrix_of(column.filter(pa.array(fits)))
    return vectors


def _typed(table: pa.Table, start: int) -> pa.Table:
    """The columns in our types, the same for every file; columns that we do not know as texts.

    A null id becomes one that only this row has, and that `is_nobody` knows.

    Args:
        start: the number of the first row.

    Raises:
        pa.ArrowInvalid: naming the column that holds something else.
    """
    columns = {}
    for name in table.column_names:
        try:
            column = table[name].cast(_TYPES.get(name, pa.string()))
            column.validate(full=True)  # a text may be no UTF-8
        except pa.ArrowException as error:
            raise pa.ArrowInvalid(f"column {name!r}: {first_line(error)}") from None
        if name == "id" and column.null_count:
            numbers = pa.array([f"{_NULL}{number}" for number in range(start, start + len(column))])
            column = pc.coalesce(column, numbers)
        columns[name] = column
    return pa.table(columns)


def is_nobody(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """bool: which ids are null in their file."""
    return np.asarray(pc.starts_with(ids, _NULL))


def _width(parquet: pq.ParquetFile, kind: pa.DataType) -> int | None:
    """Of the first vector of a file that has numbers; None if it has none. A fixed one is named by the type.

    Raises:
        pa.ArrowInvalid: the column holds no vectors.
    """
    if not parquet.metadata.num_rows:
        return None
    if not pa.types.is_floating(getattr(kind, "value_type", pa.null())):
        raise pa.ArrowInvalid(f"column 'embedding' is of {kind}, no lists of floating-point numbers")
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in parquet.iter_batches(1 << 10, columns=["embedding"]):
        lengths = pc.drop_null(pc.list_value_length(batch.column(0))).to_numpy()
        if lengths.any():  # the most frequent one: a single row may be odd
            return int(np.bincount(lengths[lengths > 0]).argmax())
    return None
