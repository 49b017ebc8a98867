"""Tar shards of img2dataset: key.jpg, key.txt and key.json in a tar, and a Parquet file beside it."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.errors import first_line
from mme5core.images import IMAGE_SUFFIXES
from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse, writable
from mme5core.storage import AnyPath


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """The pictures of one tar, then a refused row for each row of the Parquet file beside it that is not in the tar.

    The caption is not the row's text: only the picture is embedded or shown to a teacher.
    """
    in_tar: set[str] = set()
    for row in _read_tar(shard, options):
        in_tar.add(row.id)
        yield row
    yield from _not_in_tar(shard.with_suffix(".parquet"), in_tar)


def read_picture(shard: AnyPath, offset: int, num_bytes: int) -> bytes:
    """The bytes of one picture, without reading the tar up to it."""
    with shard.open("rb") as stream:
        stream.seek(offset)
        return stream.read(num_bytes)


def _read_tar(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    sources = _sources(shard, options) if options.columns else {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _, suffix = Path(member.name).name.partition(".")
                key = writable(key)
                if not member.isfile() or f".{suffix.lower()}" not in IMAGE_SUFFIXES:
                    continue
                stream = tar.extractfile(member)
                try:
                    data = stream.read() if stream else b""
                except tarfile.ReadError:
                    yield refuse(key, "broken_shard", f"{shard.name} ends inside this picture")
                    raise
                yield CorpusRow(key, image=data, offset=member.offset_data, source=sources.get(key))
            end = tar.offset
        # tarfile stops at a header that it cannot read as if the tar ended there; the real end is a block of zeros.
        if read_picture(shard, end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            yield refuse(shard.name, "broken_shard", f"the tar is truncated at byte {end}")
    except (tarfile.TarError, EOFError) as error:
        yield refuse(shard.name, "broken_shard", str(error) or type(error).__name__)
    except OSError as error:
        yield refuse(shard.name, "broken_shard", error.strerror or str(error))


def _sources(shard: AnyPath, options: ReadOptions) -> dict[str, str | None]:
    """The chosen columns of each picture, from its JSON file; None of a picture whose JSON cannot be read."""
    sources: dict[str, str | None] = {}
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, _, suffix = Path(member.name).name.partition(".")
                stream = tar.extractfile(member) if suffix == "json" else None
                try:
                    record = json.loads(stream.read()) if stream else None
                except ValueError:
                    continue
                if isinstance(record, dict):
                    sources[writable(key)] = options.source(record)
    except (tarfile.TarError, EOFError, OSError):
        pass  # `_read_tar` reports it
    return sources


def _not_in_tar(sidecar: AnyPath, in_tar: set[str]) -> Iterator[CorpusRow]:
    if not sidecar.is_file():
        return
    try:
        with sidecar.open("rb") as file:
            table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        yield refuse(sidecar.name, "broken_shard", first_line(error))
        return
    if "key" not in table.column_names:
        return
    count = table.num_rows
    statuses = table["status"].to_pylist() if "status" in table.column_names else [None] * count
    errors = table["error_message"].to_pylist() if "error_message" in table.column_names else [None] * count
    for key, status, message in zip(table["key"].to_pylist(), statuses, errors, strict=True):
        if str(key) not in in_tar:
            reason = status if status and status != "success" else "missing_from_tar"
            yield refuse(str(key), reason, message or "")
