"""Files on disk or in an object store, read through the same interface, the part of `Path` that readers use."""

from __future__ import annotations

import fnmatch
import io
import re
import urllib.parse
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from mme5core.errors import first_line
from mme5core.web import Unreachable, fetch

_WEB = ("http", "https")
_PYARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_CREDENTIALS = re.compile(r"//[^/@\s\"']+@")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//)|(?i:(file)):(?=/)")
_QUERY = re.compile(r"(\w://[^\s\"'?]*)\?[^\s\"']*")


@dataclass(frozen=True, slots=True)
class Address:
    """A file or folder in an object store, such as s3://bucket/corpus/00000.tar, with the methods of `Path` that
    readers use.

    Args:
        path: with the scheme.
        options: of the store, in pyarrow's form behind a "?": "region=eu-west-1". Paths below have the same.

    >>> shard = locate("s3://bucket/corpus?region=eu-west-1") / "00000.tar"
    >>> str(shard), shard.name, shard.suffix
    ('s3://bucket/corpus/00000.tar?region=eu-west-1', '00000.tar', '.tar')
    """

    path: str
    options: str = ""
    _info: fs.FileInfo | None = field(default=None, compare=False, repr=False)  # from a listing of the folder

    @property
    def is_web(self) -> bool:
        return self.path.startswith(tuple(f"{scheme}://" for scheme in _WEB))

    def __str__(self) -> str:
        return f"{self.path}?{self.options}" if self.options else self.path

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.path.rstrip('/')}/{name}", self.options)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Address:
        return Address(self.path.rstrip("/").rpartition("/")[0], self.options)

    def with_suffix(self, suffix: str) -> Address:
        return self.parent / PurePosixPath(self.name).with_suffix(suffix).name

    def absolute(self) -> Address:
        return self

    def resolve(self) -> Address:
        return self

    def exists(self) -> bool:
        return self.info().type != fs.FileType.NotFound

    def is_dir(self) -> bool:
        return bool(self.info().type == fs.FileType.Directory)

    def is_file(self) -> bool:
        return bool(self.info().type == fs.FileType.File)

    def iterdir(self) -> list[Address]:
        """The files and folders directly in the folder."""
        store, path = _opened(self)
        infos = store.get_file_info(fs.FileSelector(path))
        return [Address(f"{self.path.rstrip('/')}/{info.base_name}", self.options, info) for info in infos]

    def matches(self) -> list[Address]:
        """The entries beside it, sorted, whose names match its own as a pattern; itself if its name is no pattern."""
        if not set("*[") & set(self.name):
            return [self]
        return [entry for entry in entries(self.parent) if fnmatch.fnmatchcase(entry.name, self.name)]  # type: ignore[misc]

    def open(self, mode: str = "rb") -> IO[bytes]:
        """A binary stream that can seek.

        Raises:
            OSError: there is no such file, or the store does not answer.
        """
        assert mode == "rb", "addresses are only read"
        store, path = _opened(self)
        return io.BufferedReader(store.open_input_file(path), 1 << 20)  # type: ignore[type-var, return-value]

    def read_bytes(self) -> bytes:
        """The whole content of the file.

        Raises:
            FileNotFoundError: there is no such file.
            Unreachable: the store or server does not answer, or asks to retry later.
        """
        if self.is_web:
            return fetch(self.path)
        store, path = _opened(self)
        try:
            with store.open_input_file(path) as stream:
                data: bytes = stream.read()
                return data
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unreachable(first_line(error)) from None

    def info(self) -> Any:
        if self._info is not None:
            return self._info
        store, path = _opened(self)
        return store.get_file_info([path])[0]


AnyPath = Path | Address


def locate(text: str) -> AnyPath:
    """A path on this machine, or an address if the text has a scheme, in upper or lower case.

    >>> locate("corpus/a.tar"), locate("gs://bucket/a.tar")
    (PosixPath('corpus/a.tar'), Address(path='gs://bucket/a.tar', options=''))
    >>> locate("file:///my%20corpus"), locate("file:/corpus"), locate("file://localhost/corpus")
    (PosixPath('/my corpus'), PosixPath('/corpus'), PosixPath('/corpus'))
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text)
    name = (scheme[1] or scheme[2]).lower()
    rest = text[scheme.end() :]
    if name == "file":
        path = rest.removeprefix("//").removeprefix("localhost") if rest.startswith("//") else rest
        return Path(urllib.parse.unquote(path))
    text = f"{name}:{rest}"
    if name in _WEB:
        return Address(text)  # the query belongs to the URL
    path, _, options = text.partition("?")
    return Address(path, options)


def parquet_file(file: AnyPath) -> pq.ParquetFile:
    """A Parquet file opened for reading.

    Raises:
        OSError, pyarrow.ArrowInvalid: it does not exist, or is not a Parquet file.
    """
    return pq.ParquetFile(file if isinstance(file, Path) else file.open())


def entries(folder: AnyPath) -> list[AnyPath]:
    """The files and folders directly in a folder, sorted by name."""
    unsorted: list[AnyPath] = [*folder.iterdir()]
    return sorted(unsorted, key=lambda entry: entry.name)


def num_bytes(file: AnyPath) -> int:
    return int(file.info().size) if isinstance(file, Address) else file.stat().st_size


def without_credentials(text: str) -> str:
    """The text without possible credentials in its addresses: user and password, and the part after a "?".

    >>> without_credentials("http://me:secret@host:8000/v1")
    'http://host:8000/v1'
    >>> without_credentials("no such file: s3://id:key@bucket/a.tar?token=key, sorry")
    'no such file: s3://bucket/a.tar?... sorry'
    """
    return _QUERY.sub(r"\1?...", _CREDENTIALS.sub("//", text))


def _opened(address: Address) -> tuple[fs.FileSystem, str]:
    """The store of an address, and the path in it.

    Raises:
        OSError: there is no such store, or no package for its scheme is installed.
    """
    scheme, _, rest = address.path.partition("://")
    root, _, inside = rest.partition("/")
    try:
        store, base = _store(scheme, root, address.options)
    except (
        OSError,  # the store refuses
        ValueError,  # an unknown scheme, or an address that the store does not accept
        ImportError,  # the scheme's package is not installed
        pa.ArrowNotImplementedError,  # pyarrow was built without the scheme
    ) as error:
        raise OSError(without_credentials(f"{address}: {first_line(error)}")) from None
    return store, f"{base}/{inside}".rstrip("/") if base else inside


@cache
def _store(scheme: str, root: str, options: str) -> tuple[fs.FileSystem, str]:
    """pyarrow's own store where it has one, else fsspec's; kept until the process ends."""
    if scheme in _PYARROW:
        store, base = fs.FileSystem.from_uri(f"{scheme}://{root}" + (f"?{options}" if options else ""))
        return store, base
    import fsspec

    if scheme in _WEB:
        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme))), f"{scheme}://{root}"
    store, base = fsspec.core.url_to_fs(f"{scheme}://{root}")
    return fs.PyFileSystem(fs.FSSpecHandler(store)), base
