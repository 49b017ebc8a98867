"""Files on disk or in an object store, read alike: what the readers need of a path, for an address too."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
from pyarrow import fs


@dataclass(frozen=True, slots=True)
class Address:
    """A file or folder in an object store, such as s3://bucket/corpus/00000.tar, with the part of `Path` that readers
    use. A query (s3://bucket/corpus?region=...) goes with every file below the folder.

    >>> shard = Address("s3://bucket/corpus?region=eu-west-1") / "00000.tar"
    >>> str(shard), shard.name, shard.suffix, str(shard.with_suffix(".parquet"))
    ('s3://bucket/corpus/00000.tar?region=eu-west-1', '00000.tar', '.tar', 's3://bucket/corpus/00000.parquet?region=eu-west-1')
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Address:
        path, query = self._split()
        return Address(f"{path.rstrip('/')}/{name}{query}")

    @property
    def name(self) -> str:
        return self._split()[0].rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> Address:
        path, query = self._split()
        return Address(path.rstrip("/").rpartition("/")[0] + query)

    def with_suffix(self, suffix: str) -> Address:
        return self.parent / Path(self.name).with_suffix(suffix).name

    def absolute(self) -> Address:
        return self

    def resolve(self) -> Address:
        return self

    def exists(self) -> bool:
        return self._info().type != fs.FileType.NotFound

    def is_dir(self) -> bool:
        return bool(self._info().type == fs.FileType.Directory)

    def is_file(self) -> bool:
        return bool(self._info().type == fs.FileType.File)

    def num_bytes(self) -> int:
        return int(self._info().size)

    def iterdir(self) -> list[Address]:
        """What lies in the folder itself."""
        store, path = _opened(self.text)
        return [self / info.base_name for info in store.get_file_info(fs.FileSelector(path))]

    def open(self, mode: str = "rb") -> IO[bytes]:
        """A binary stream that can seek.

        Raises:
            OSError: no such file, or the store does not answer.
        """
        assert mode == "rb", "addresses are only read"
        store, path = _opened(self.text)
        return io.BufferedReader(store.open_input_file(path), 1 << 20)  # type: ignore[type-var, return-value]

    def read_bytes(self) -> bytes:
        with self.open() as stream:
            return stream.read()

    def _split(self) -> tuple[str, str]:
        path, mark, query = self.text.partition("?")
        return path, mark + query

    def _info(self) -> Any:
        store, path = _opened(self.text)
        return store.get_file_info([path])[0]


AnyPath = Path | Address


def locate(text: str) -> AnyPath:
    """A path of this machine, or an address where there is a scheme.

    >>> locate("corpus/a.tar"), locate("gs://bucket/a.tar")
    (PosixPath('corpus/a.tar'), Address(text='gs://bucket/a.tar'))
    >>> locate("file:///corpus")
    PosixPath('/corpus')
    """
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return Address(text) if "://" in text else Path(text)


def parquet_file(file: AnyPath) -> pq.ParquetFile:
    """A Parquet file opened for reading.

    Raises:
        OSError, pyarrow.ArrowInvalid: it is not there, or no Parquet.
    """
    return pq.ParquetFile(file if isinstance(file, Path) else file.open())


def entries(folder: AnyPath) -> list[AnyPath]:
    """What lies in a folder, in the order of the names."""
    found: list[AnyPath] = [*folder.iterdir()]
    return sorted(found, key=lambda entry: entry.name)


def num_bytes(file: AnyPath) -> int:
    return file.num_bytes() if isinstance(file, Address) else file.stat().st_size


def _opened(text: str) -> tuple[fs.FileSystem, str]:
    """The store of an address, and the path in it.

    Raises:
        OSError: no such store, or a scheme for which nothing is installed.
    """
    path, _, query = text.partition("?")
    scheme, _, rest = path.partition("://")
    root, _, inside = rest.partition("/")
    try:
        store, base = _store(scheme, root, query)
    except (ValueError, ImportError, OSError) as error:
        raise OSError(f"{without_query(text)}: {str(error).splitlines()[0]}") from None
    return store, f"{base}/{inside}".rstrip("/") if base else inside


@cache
def _store(scheme: str, root: str, query: str) -> tuple[fs.FileSystem, str]:
    """pyarrow's own where it has one (s3, gs, abfs, hdfs), else fsspec's, kept for the life of the process."""
    address = f"{scheme}://{root}" + (f"?{query}" if query else "")
    if scheme in ("http", "https"):
        import fsspec

        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme))), f"{scheme}://{root}"
    try:
        store, base = fs.FileSystem.from_uri(address)
        return store, base
    except (ValueError, NotImplementedError):
        import fsspec

        store, base = fsspec.core.url_to_fs(f"{scheme}://{root}")
        return fs.PyFileSystem(fs.FSSpecHandler(store)), base


def without_query(text: str) -> str:
    """An address without what may hold a key."""
    return text.partition("?")[0]
