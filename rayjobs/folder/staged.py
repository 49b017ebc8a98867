"""A folder that an export writes: it appears whole or not at all, with what was left out beside the rest."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.errors import InputError
from mme5core.schemas import QUARANTINE
from mme5core.types import Rejected
from rayjobs.command.outcome import BAD_INPUT, Outcome


@contextlib.contextmanager
def staged_folder(output: str) -> Iterator[Path]:
    """A folder beside the output, which takes its place at the end unless it was removed, or something was raised.

    Raises:
        InputError: no output is given, or it is there already.
    """
    if not output:
        raise InputError("'output' is required: the folder to write")
    final = Path(output)
    if final.exists():
        raise InputError(f"output {output!r} is there already: choose another, or remove it")
    staged = final.with_name(f".{final.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
        if staged.exists():
            staged.rename(final)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def exported(staged: Path, *, num_read: int, num_kept: int, refused: Sequence[Rejected]) -> Outcome:
    """The outcome of an export; what was refused is written beside it. Where nothing is kept, the folder goes."""
    counts = dict(Counter(rejected.reason for rejected in refused))
    counters = {"read": num_read, "kept": num_kept, "refused": counts, "pending": 0}
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
    first = f"{reasons}; the first, {refused[0].id}: {refused[0].detail}" if refused else "the input has no rows"
    if not num_kept:
        shutil.rmtree(staged)
        return Outcome(counters, BAD_INPUT, f"nothing to export: {first}")
    if not refused:
        return Outcome(counters)
    (staged / "_quarantine").mkdir()
    rows = pa.Table.from_pylist([asdict(rejected) for rejected in refused], QUARANTINE)
    pq.write_table(rows, staged / "_quarantine" / "part-00000.parquet")
    return Outcome(counters, reason=f"done; {len(refused):,} samples are left out: {first}")
