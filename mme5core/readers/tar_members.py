"""Members of a tar that nobody has checked: sizes before reading, every archive of the file, and an end."""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = tarfile.BLOCKSIZE
BYTES_AT_ONCE = 1 << 20
LONGEST_EXTENSION = 1 << 14


class BrokenTar(ValueError):
    """The tar cannot be read on; the message says why."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member that is no folder.

    Args:
        offset: of its bytes in the file.
        kind: what it is, if it is not a regular file whose bytes lie in the tar.
        is_cut: the file ends before its last byte.
    """

    name: str
    size: int
    offset: int
    kind: str = ""
    is_cut: bool = False

    @property
    def is_file(self) -> bool:
        return not self.kind

    def read(self, file: IO[bytes]) -> bytes:
        """
        Raises:
            BrokenTar: the file ends inside it.
        """
        place = file.tell()
        file.seek(self.offset)
        data = file.read(self.size)
        file.seek(place)
        if len(data) < self.size:
            raise BrokenTar(f"the file ends inside {self.name}")
        return data


class _Header(tarfile.TarInfo):
    """A header whose extensions (long names, pax records) are read only if they are short."""

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._check_length()
        return super()._proc_gnulong(archive)  # type: ignore[misc, no-any-return]

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._check_length()
        return super()._proc_pax(archive)  # type: ignore[misc, no-any-return]

    def _check_length(self) -> None:
        # Python's search for the records takes time with the square of their length.
        if self.size > LONGEST_EXTENSION:
            raise BrokenTar(f"a header has an extension of {self.size:,} bytes")


def members(file: IO[bytes]) -> Iterator[Member]:
    """All members in order but folders; of several tars in one file (`cat a.tar b.tar`) those of all.

    Raises:
        BrokenTar: from the member on that cannot be read.
    """
    size = file.seek(0, 2)
    start: int | None = 0
    while start is not None:
        start = yield from _of_one_archive(file, start, size)


def _of_one_archive(file: IO[bytes], start: int, size: int) -> Generator[Member, None, int | None]:
    """The members of the archive that begins at `start`; returns where the next one begins, None if there is none."""
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            last = -1
            while (entry := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                if entry.size < 0 or tar.offset <= last:
                    raise BrokenTar(f"the header of {entry.name!r} gives a size of {entry.size} bytes")
                last = tar.offset
                if not entry.isdir():
                    yield (member := _member(entry, size))
                    if member.is_cut:
                        raise BrokenTar(f"the file ends inside {entry.name}")
            end = tar.offset
    except BrokenTar:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise BrokenTar(str(error) or type(error).__name__) from None
    file.seek(end)
    # tarfile stops at a header that it cannot read as if the tar ended there; the real end is a block of zeros.
    if file.read(BLOCK) != bytes(BLOCK):
        raise BrokenTar(f"the tar is truncated at byte {end}")
    return _next_archive(file, end)


def _member(entry: tarfile.TarInfo, size: int) -> Member:
    if entry.issparse():
        return Member(entry.name, 0, entry.offset_data, "a sparse file")
    if entry.isfile():
        is_cut = entry.offset_data + entry.size > size
        return Member(entry.name, entry.size, entry.offset_data, is_cut=is_cut)
    if entry.issym() or entry.islnk():
        return Member(entry.name, 0, entry.offset_data, f"a link to {entry.linkname}")
    return Member(entry.name, 0, entry.offset_data, "a pipe or device")


def _next_archive(file: IO[bytes], end: int) -> int | None:
    """The first block behind `end` that is not zeros."""
    place = end
    file.seek(end)
    while data := file.read(BYTES_AT_ONCE):
        if data.count(0) != len(data):
            first = next(n for n, byte in enumerate(data) if byte)
            return place + first // BLOCK * BLOCK
        place += len(data)
    return None
