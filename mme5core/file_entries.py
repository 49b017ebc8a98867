"""What a manifest says of a file: name, size, checksum, rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

FileEntry = dict[str, Any]
"""`name` below the folder, `bytes`, `sha256`, and for Parquet `rows`."""


def describe(file: Path, root: Path) -> FileEntry:
    """The entry of a file below `root`."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    entry: FileEntry = {
        "name": str(file.relative_to(root)),
        "bytes": file.stat().st_size,
        "sha256": digest.hexdigest(),
    }
    if file.suffix == ".parquet":
        entry["rows"] = pq.read_metadata(file).num_rows
    return entry


def has_file(root: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the file of an entry is below `root`, of its size."""
    try:
        return (root / entry["name"]).stat().st_size == int(entry["bytes"])
    except FileNotFoundError:
        return False
