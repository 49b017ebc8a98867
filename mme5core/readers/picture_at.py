"""Reading one picture of a corpus again, at the place that the first reading recorded."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from threading import Lock

import pyarrow as pa

from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.readers.cells import image_of
from mme5core.readers.corpus_row import ReadOptions
from mme5core.readers.img2dataset import read_picture as read_from_tar
from mme5core.readers.parquet_rows import rows_at_once
from mme5core.readers.picture_places import RemotePicture
from mme5core.readers.pictures import read_picture as read_from_folder
from mme5core.readers.table import choose_columns
from mme5core.storage import AnyPath, parquet_file

SUFFIXES_WITH_PICTURES = (".tar", ".parquet")
"""The formats of which `read_picture` finds one picture again; `synth` reads these, and folders."""

_ONE_AT_A_TIME = Lock()  # else threads that need pictures of the same row group would each read all of it


def read_picture(shard: AnyPath, image_id: str, offset: int, num_bytes: int, options: ReadOptions) -> bytes:
    """The encoded bytes of a picture.

    Of a tar only its bytes are read. Of a Parquet file the row's group is read, and kept for the next pictures. A
    folder's picture is read by its path.

    Args:
        offset: `CorpusRow.offset`: the place of the bytes in a tar, or the row's number in a Parquet file.

    Raises:
        OSError: the file can no longer be read.
        BadImage: the picture no longer exists.
    """
    if shard.suffix.lower() == ".tar":
        return read_from_tar(shard, offset, num_bytes)
    if shard.suffix.lower() == ".parquet":
        return _in_parquet(shard, offset, options)
    data = read_from_folder(shard, image_id, replace(options, fetch=True))
    assert isinstance(data, bytes), "read_picture fetches"
    return data


def _in_parquet(shard: AnyPath, row: int, options: ReadOptions) -> bytes:
    try:
        with _ONE_AT_A_TIME:
            starts, columns = _layout(shard)
            group = bisect_right(starts, row) - 1
            cells = [_row_group(shard, group, column)[row - starts[group]].as_py() for column in columns]
        # A row of one picture has it in the column of pictures, or alone in a list of them.
        stored = [cell[0] if isinstance(cell, list) else cell for cell in cells if cell not in (None, "", [])]
        data = image_of(stored[0], shard, replace(options, fetch=True)) if stored else None
    except BadImage:
        raise
    except (pa.ArrowException, ValueError, IndexError) as error:
        raise OSError(0, first_line(error), str(shard)) from None
    assert not isinstance(data, RemotePicture), "read_picture fetches"
    return data or b""


@lru_cache(maxsize=256)
def _layout(shard: AnyPath) -> tuple[list[int], list[str]]:
    """The first row of each row group, and the columns of pictures."""
    file = parquet_file(shard)
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)]
    chosen = choose_columns(file.schema_arrow.names)
    columns = [column for column in (chosen["image"], chosen["images"]) if column is not None]
    if not columns:
        raise ValueError("no column of pictures")
    return [0, *accumulate(sizes)], columns


@lru_cache(maxsize=4)
def _row_group(shard: AnyPath, number: int, column: str) -> Cells:
    """The column in batches: Arrow cannot give nested columns of more than 2 GB in one."""
    file = parquet_file(shard)
    rows = rows_at_once(file, number, [column])
    batches = [batch.column(0) for batch in file.iter_batches(rows, row_groups=[number], columns=[column])]
    return Cells(batches, [0, *accumulate(len(batch) for batch in batches)])


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a column in batches; `starts` are the places of the batches' first cells, and the count."""

    batches: list[pa.Array]
    starts: list[int]

    def __getitem__(self, place: int) -> pa.Scalar:
        batch = bisect_right(self.starts, place) - 1
        return self.batches[batch][place - self.starts[batch]]
