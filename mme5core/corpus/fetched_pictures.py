"""Pictures that a scan has fetched from servers: kept beside the index, so that each is fetched once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO

import pyarrow.parquet as pq

from mme5core.ahead import FETCHED_AHEAD, FETCHED_BYTES, FETCHES_AT_ONCE, side_by_side
from mme5core.corpus.index import index_file
from mme5core.durable import sync_file
from mme5core.images import BadImage
from mme5core.readers import CorpusRow
from mme5core.readers.corpus_row import refuse
from mme5core.readers.picture_places import RemotePicture

PICTURES_FILE = b"pictures"
"""Key of the index's metadata: the name of the file of fetched pictures."""
ASIDE = ".earlier"
_INDEXES = (".parquet", ASIDE)
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
    file = folder / _name(index_file(folder, shard))
    with file.open("rb") as pictures:
        pictures.seek(_FIRST - offset)
        data = pictures.read(num_bytes)
    if len(data) < num_bytes:
        raise OSError(0, "the file is cut", str(file))
    return data


@lru_cache(maxsize=1024)
def _name(index: Path) -> str:
    metadata = pq.read_metadata(index).metadata or {}
    return metadata[PICTURES_FILE].decode()


class FetchPictures:
    """Rows of a shard in, the same rows with the pictures that are at servers out.

    Args:
        folder: of the index; a file is made there if any row has a picture at a server. It has a random name, which the
            index holds: a task may run twice, and what is fetched may differ.
        check: raises BadImage for a row whose pictures need not be fetched.
    """

    def __init__(self, folder: Path, shard: int, check: Callable[[CorpusRow], None] | None = None) -> None:
        self._check = check
        self._earlier = _Earlier.of(folder, shard)
        self._path = folder / f"{uuid.uuid4().hex}.pictures"
        self._file: IO[bytes] | None = None
        self._is_kept = False

    def __enter__(self) -> FetchPictures:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            if not self._is_kept:
                self._path.unlink(missing_ok=True)

    def rows(self, rows: Iterator[CorpusRow]) -> Iterator[CorpusRow]:
        for row, has_fetched in side_by_side(
            self._with_pictures,
            enumerate(rows),
            is_slow=lambda numbered: numbered[1].is_remote,
            at_once=FETCHES_AT_ONCE,
            waiting=FETCHED_AHEAD,
            size_of=lambda done: done[0].num_bytes,
            most_bytes=FETCHED_BYTES,
        ):
            yield replace(row, offset=self._keep(row)) if has_fetched and row.refused is None else row

    def close(self) -> dict[bytes, bytes]:
        """End the file; returns what the index must hold in its metadata."""
        if self._file is None:
            return {}
        self._file.close()
        sync_file(self._path)
        self._is_kept = True
        return {PICTURES_FILE: self._path.name.encode()}

    def _with_pictures(self, numbered: tuple[int, CorpusRow]) -> tuple[CorpusRow, bool]:
        number, row = numbered
        if not row.is_remote:
            return row, False
        if row.image is not None and (data := self._earlier.read(number)) is not None:
            return replace(row, image=data), True
        try:
            if self._check is not None:
                self._check(row)
            pictures = tuple(p.read() if isinstance(p, RemotePicture) else p for p in row.pictures)
        except BadImage as error:
            return refuse(row.id, error.reason, error.detail), True
        return replace(row, image=pictures[0]) if row.image is not None else replace(row, images=pictures), True

    def _keep(self, row: CorpusRow) -> int:
        if self._file is None:
            self._file = self._path.open("wb")
        place = self._file.tell()
        for picture in row.pictures:
            assert isinstance(picture, bytes)
            self._file.write(picture)
        return _FIRST - place


def fetched_files(folder: Path) -> set[str]:
    """The names of the files of fetched pictures that an index in the folder names, be it set aside or not."""
    indexes = [file for file in folder.glob("*.*") if file.suffix in _INDEXES]
    return {name for file in indexes for name in pictures_of(file)}


def pictures_of(index: Path) -> list[str]:
    """The name of the file of fetched pictures that an index names, if it does."""
    metadata = pq.read_metadata(index).metadata or {}
    return [metadata[PICTURES_FILE].decode()] if PICTURES_FILE in metadata else []


def set_aside(folder: Path, shard: int) -> None:
    """Have a shard scanned again; what was fetched for it is not fetched again."""
    index_file(folder, shard).rename(_aside(folder, shard))


def _aside(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}{ASIDE}"


@dataclass(frozen=True, slots=True)
class _Earlier:
    """What an earlier scan of a shard has fetched.

    Args:
        pictures: the file; None: nothing.
        places: (place in the file, bytes) by the row's number in the shard.
    """

    pictures: Path | None = None
    places: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, shard: int) -> _Earlier:
        index = _aside(folder, shard)
        if not index.is_file() or PICTURES_FILE not in (pq.read_metadata(index).metadata or {}):
            return cls()
        table = pq.read_table(index, columns=["offset", "num_bytes"])
        rows = enumerate(zip(table["offset"].to_pylist(), table["num_bytes"].to_pylist(), strict=True))
        places = {number: (_FIRST - offset, size) for number, (offset, size) in rows if is_fetched(offset)}
        return cls(folder / _name(index), places)

    def read(self, number: int) -> bytes | None:
        if self.pictures is None or number not in self.places:
            return None
        place, size = self.places[number]
        with self.pictures.open("rb") as file:
            file.seek(place)
            data = file.read(size)
        return data if len(data) == size else None
