"""Tar shards of img2dataset: key.jpg, key.txt and key.json in a tar, and a Parquet file beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow.parquet as pq

from mme5core.errors import first_line
from mme5core.images import MAX_PICTURE_BYTES
from mme5core.picture_formats import IMAGE_SUFFIXES
from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse
from mme5core.readers.parquet_rows import records_of
from mme5core.readers.table import IMG2DATASET
from mme5core.readers.tar_members import BrokenTar, members
from mme5core.readers.texts import as_text, writable
from mme5core.storage import AnyPath

COMPANIONS = frozenset(
    (
        ".txt",
        ".json",
        ".caption",
        ".cls",
        ".yaml",
        ".yml",
        ".xml",
        ".csv",
        ".npy",
        ".npz",
        ".pt",
        ".pyd",
        ".md",
        ".html",
    )
)
"""What lies beside a picture and says something of it; other members that are no pictures are refused by name."""


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """The pictures of one tar, then a refused row for each row of the Parquet file beside it that is not in the tar.

    The id of a row is its member's path without the last suffix, below the tar's folder. The caption is not the row's
    text: only the picture is embedded or shown to a teacher.
    """
    in_tar: set[str] = set()
    for key, row in _read_tar(shard, options):
        in_tar.add(key)
        yield row
    yield from _not_in_tar(shard.with_suffix(".parquet"), in_tar, options.prefix(shard))


def read_picture(shard: AnyPath, offset: int, num_bytes: int) -> bytes:
    """The bytes of one picture, without reading the tar up to it."""
    with shard.open("rb") as stream:
        stream.seek(offset)
        return stream.read(num_bytes)


def _read_tar(shard: AnyPath, options: ReadOptions) -> Iterator[tuple[str, CorpusRow]]:
    """(key in the tar, row) of each picture, and of what must be refused."""
    sources = _sources(shard, options) if options.columns else {}
    prefix = options.prefix(shard)
    try:
        with shard.open("rb") as file:
            for member in members(file):
                path = PurePosixPath(member.name)
                key = writable(str(path.with_suffix(""))) if path.name else writable(repr(member.name))
                if member.is_file and path.suffix.lower() in COMPANIONS:
                    continue
                whole = f"{prefix}{writable(str(path))}"
                if not member.is_file:
                    yield key, refuse(whole, "not_a_regular_file", member.kind)
                elif path.suffix.lower() not in IMAGE_SUFFIXES:
                    yield (
                        whole,
                        refuse(
                            whole, "unknown_suffix", f"{path.suffix or 'no suffix'}: neither a picture nor its text"
                        ),
                    )
                elif member.is_cut:
                    yield key, refuse(f"{prefix}{key}", "broken_shard", f"{shard.name} ends inside this picture")
                elif member.size > MAX_PICTURE_BYTES:
                    yield key, refuse(f"{prefix}{key}", "too_many_bytes", f"{member.size:,} bytes")
                else:
                    data = member.read(file)
                    yield key, CorpusRow(f"{prefix}{key}", image=data, offset=member.offset, source=sources.get(key))
    except BrokenTar as error:
        yield shard.name, refuse(options.name(shard), "broken_shard", str(error))


def _sources(shard: AnyPath, options: ReadOptions) -> dict[str, str | None]:
    """The chosen columns of each picture, from its JSON file; None of a picture whose JSON cannot be read."""
    sources: dict[str, str | None] = {}
    try:
        with shard.open("rb") as file:
            for member in members(file):
                path = PurePosixPath(member.name)
                if (
                    not path.name
                    or not member.is_file
                    or path.suffix != ".json"
                    or member.size > MAX_PICTURE_BYTES
                    or member.is_cut
                ):
                    continue
                try:
                    record = json.loads(member.read(file).decode())
                    source = options.source(record) if isinstance(record, dict) else None
                except (ValueError, RecursionError):
                    continue
                if source is not None:
                    sources[writable(str(path.with_suffix("")))] = source
    except (BrokenTar, OSError):
        pass  # `_read_tar` reports it
    return sources


def _not_in_tar(sidecar: AnyPath, in_tar: set[str], prefix: str) -> Iterator[CorpusRow]:
    if not sidecar.is_file():
        return
    try:
        with sidecar.open("rb") as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            if "key" not in names:
                detail = "Parquet beside a tar of its name, without img2dataset's column key: rename it to have it read"
                yield refuse(f"{prefix}{sidecar.name}", "not_a_sidecar", detail)
                return
            columns = [name for name in IMG2DATASET if name in names]
            # A key may be a number where the writer took digits for one.
            numbers = {int(key) for key in in_tar if key.isdecimal() and key.isascii()}
            for record in records_of(parquet, columns):
                key, status = record["key"], record.get("status")
                if as_text(key) not in in_tar and not (isinstance(key, int) and key in numbers):
                    reason = as_text(status) if status and status != "success" else "missing_from_tar"
                    yield refuse(f"{prefix}{as_text(key)}", reason, as_text(record.get("error_message") or ""))
    except Exception as error:  # its rows are named in the tar too
        yield refuse(f"{prefix}{sidecar.name}", "broken_shard", first_line(error))
