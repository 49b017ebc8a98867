"""Lines that the previews of all jobs share."""

from __future__ import annotations

from collections.abc import Sequence

from mme5core.readers.shards import shard_bytes
from mme5core.storage import AnyPath
from rayjobs.folder import JobFolder


def file_lines(shards: Sequence[AnyPath]) -> list[str]:
    """How many files would be read, and how large they are."""
    size = sum(shard_bytes(shard) for shard in shards)
    return [
        f"{len(shards):,} file{'s' * (len(shards) > 1)}, {size / 1e6:,.1f} MB: {shards[0]}"
        + (" ..." if len(shards) > 1 else "")
    ]


def output_lines(output: str, folder: JobFolder) -> list[str]:
    """What a run would meet in its output folder, if one is set.

    Raises:
        InputError: a run would refuse the folder.
    """
    return [f"output {folder.path}: {folder.state()}"] if output else []
