"""Pictures that a scan has fetched from servers: kept beside the index, so that each is fetched once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from mme5core.ahead import side_by_side
from mme5core.durable import sync_file
from mme5core.images import BadImage
from mme5core.readers import CorpusRow
from mme5core.readers.corpus_row import refuse
from mme5core.readers.picture_places import RemotePicture

FETCHES_AT_ONCE, FETCHED_AHEAD = 16, 64
_FIRST = -2
"""The offset of the first byte of a shard's file; -1 means that a picture has no place of its own."""


def is_fetched(offset: int) -> bool:
    """Whether an offset of the index is a place in the file of fetched pictures."""
    return offset <= _FIRST


def read_fetched(folder: Path, shard: int, offset: int, num_bytes: int) -> bytes:
    """
    Raises:
        OSError: the file cannot be read.
    """
    with _file(folder, shard).open("rb") as file:
        file.seek(_FIRST - offset)
        return file.read(num_bytes)


class FetchPictures:
    """Rows of a shard in, the same rows with the pictures that are at servers out.

    Args:
        folder: of the index; a file is made there if any row has a picture at a server.
    """

    def __init__(self, folder: Path, shard: int) -> None:
        self._folder, self._shard = folder, shard
        self._temporary = folder / f".{uuid.uuid4().hex}"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> FetchPictures:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def rows(self, rows: Iterator[CorpusRow]) -> Iterator[CorpusRow]:
        for row, has_fetched in side_by_side(
            _with_pictures, rows, is_slow=_is_remote, at_once=FETCHES_AT_ONCE, waiting=FETCHED_AHEAD
        ):
            yield replace(row, offset=self._keep(row)) if has_fetched and row.refused is None else row

    def close(self) -> None:
        """Make the file the shard's, before its index appears."""
        if self._file is not None:
            self._file.close()
            sync_file(self._temporary)
            self._temporary.rename(_file(self._folder, self._shard))

    def _keep(self, row: CorpusRow) -> int:
        if self._file is None:
            self._file = self._temporary.open("wb")
        place = self._file.tell()
        for picture in row.pictures:
            assert isinstance(picture, bytes)
            self._file.write(picture)
        return _FIRST - place


def _with_pictures(row: CorpusRow) -> tuple[CorpusRow, bool]:
    if not _is_remote(row):
        return row, False
    try:
        pictures = tuple(picture.read() if isinstance(picture, RemotePicture) else picture for picture in row.pictures)
    except BadImage as error:
        return refuse(row.id, error.reason, error.detail), True
    if row.image is not None:
        return replace(row, image=pictures[0]), True
    return replace(row, images=pictures), True


def _is_remote(row: CorpusRow) -> bool:
    return any(isinstance(picture, RemotePicture) for picture in row.pictures)


def _file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.pictures"
