"""Files on disk or in an object store, read alike: what the readers need of a path, for an address too."""

from __future__ import annotations

import fnmatch
import http.client
import io
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from mme5core.errors import first_line

_WEB = ("http", "https")
_PYARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_TIMEOUT_S, _WAITS_S = 20.0, (0.5, 2.0)
_HEADERS = {"User-Agent": "mme5"}  # Python's own is turned away by some
_CREDENTIALS = re.compile(r"//[^/@\s\"']+@")
_QUERY = re.compile(r"(\w://[^\s\"'?]*)\?[^\s\"']*")


@dataclass(frozen=True, slots=True)
class Address:
    """A file or folder in an object store, such as s3://bucket/corpus/00000.tar, with the part of `Path` that readers
    use.

    Args:
        path: scheme and all.
        options: of the store, as pyarrow reads them behind a "?": "region=eu-west-1". They go with what lies below.

    >>> shard = locate("s3://bucket/corpus?region=eu-west-1") / "00000.tar"
    >>> str(shard), shard.name, shard.suffix
    ('s3://bucket/corpus/00000.tar?region=eu-west-1', '00000.tar', '.tar')
    """

    path: str
    options: str = ""
    _info: fs.FileInfo | None = field(default=None, compare=False, repr=False)  # as a listing has given it

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
        """What lies in the folder itself."""
        store, path = _opened(self)
        found = store.get_file_info(fs.FileSelector(path))
        return [Address(f"{self.path.rstrip('/')}/{info.base_name}", self.options, info) for info in found]

    def matches(self) -> list[Address]:
        """What the last part of the address means as a pattern, in the order of the names."""
        if not set("*[") & set(self.name):
            return [self]
        return [entry for entry in entries(self.parent) if fnmatch.fnmatchcase(entry.name, self.name)]  # type: ignore[misc]

    def open(self, mode: str = "rb") -> IO[bytes]:
        """A binary stream that can seek.

        Raises:
            OSError: no such file, or the store does not answer.
        """
        assert mode == "rb", "addresses are only read"
        store, path = _opened(self)
        return io.BufferedReader(store.open_input_file(path), 1 << 20)  # type: ignore[type-var, return-value]

    def read_bytes(self) -> bytes:
        """All of the file.

        Raises:
            FileNotFoundError: there is none.
            Unreachable: the store or server does not answer, or not now.
        """
        if self.path.startswith(("http://", "https://")):
            return _fetched(self.path)
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


class Unreachable(OSError):
    """What may well be there: nobody answered, or asked to come back later."""


def locate(text: str) -> AnyPath:
    """A path of this machine, or an address where there is a scheme.

    >>> locate("corpus/a.tar"), locate("gs://bucket/a.tar")
    (PosixPath('corpus/a.tar'), Address(path='gs://bucket/a.tar', options=''))
    >>> locate("file:///corpus")
    PosixPath('/corpus')
    """
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if "://" not in text:
        return Path(text)
    if text.startswith(tuple(f"{scheme}://" for scheme in _WEB)):
        return Address(text)  # there the query is a part of the address
    path, _, options = text.partition("?")
    return Address(path, options)


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
    return int(file.info().size) if isinstance(file, Address) else file.stat().st_size


def without_credentials(text: str) -> str:
    """The text without what may be a key in the addresses in it: user and password, and what follows a "?".

    >>> without_credentials("http://me:secret@host:8000/v1")
    'http://host:8000/v1'
    >>> without_credentials("no such file: s3://id:key@bucket/a.tar?token=key, sorry")
    'no such file: s3://bucket/a.tar?... sorry'
    """
    return _QUERY.sub(r"\1?...", _CREDENTIALS.sub("//", text))


def _fetched(url: str) -> bytes:
    """What a web server gives, asked again where it may give it later."""
    for wait_s in (*_WAITS_S, None):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=_HEADERS), timeout=_TIMEOUT_S) as response:
                data: bytes = response.read()
                return data
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            if error.code not in (408, 425, 429) and error.code < 500:
                raise FileNotFoundError(problem) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = first_line(getattr(error, "reason", None) or error)
        if wait_s is not None:
            time.sleep(wait_s)
    raise Unreachable(problem)


def _opened(address: Address) -> tuple[fs.FileSystem, str]:
    """The store of an address, and the path in it.

    Raises:
        OSError: no such store, or a scheme for which nothing is installed.
    """
    scheme, _, rest = address.path.partition("://")
    root, _, inside = rest.partition("/")
    try:
        store, base = _store(scheme, root, address.options)
    except (
        OSError,  # the store answers, but not with what was asked
        ValueError,  # no such scheme, or an address that the store cannot take
        ImportError,  # fsspec knows the scheme and lacks its package
        pa.ArrowNotImplementedError,  # pyarrow knows the scheme and was built without it
    ) as error:
        raise OSError(without_credentials(f"{address}: {first_line(error)}")) from None
    return store, f"{base}/{inside}".rstrip("/") if base else inside


@cache
def _store(scheme: str, root: str, options: str) -> tuple[fs.FileSystem, str]:
    """pyarrow's own where it has one, else fsspec's, kept for the life of the process."""
    if scheme in _PYARROW:
        store, base = fs.FileSystem.from_uri(f"{scheme}://{root}" + (f"?{options}" if options else ""))
        return store, base
    import fsspec

    if scheme in _WEB:
        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme))), f"{scheme}://{root}"
    store, base = fsspec.core.url_to_fs(f"{scheme}://{root}")
    return fs.PyFileSystem(fs.FSSpecHandler(store)), base
