"""A page of samples and refusals to look at: synth gallery input=samples/"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.errors import InputError
from mme5core.storage import AnyPath
from mme5core.synthesis.gallery import page
from rayjobs.command.outcome import Outcome
from rayjobs.folder import QUARANTINE_FOLDER
from rayjobs.synth.config import GalleryConfig
from rayjobs.synth.samples import KINDS, open_samples, pending_hint, sample_files


def run(config: GalleryConfig) -> Outcome:
    """Write the page."""
    files = sample_files(config.input)
    kinds = [
        (file, row, *kind.values())
        for file, path in enumerate(files)
        for row, kind in enumerate(open_samples(path).read(columns=list(KINDS)).to_pylist())
    ]
    chosen = _spread(kinds, config.num_samples, config.seed)
    rows = list(_rows_at(files, chosen))
    refused = _refused(Path(config.input), config.num_refused)
    if not rows and not refused:
        raise InputError(f"input {config.input!r} has neither samples nor refusals to show")
    output = Path(config.output or f"{config.input.rstrip('/')}-gallery.html").resolve()
    if output.is_dir():
        raise InputError(f"output {str(output)!r} is a folder; a gallery is a file, as {output.name}.html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(config.title or Path(config.input).name, rows, refused))
    except OSError as error:
        raise InputError(f"output {str(output)!r} cannot be written ({error.strerror})") from None
    counters = {"read": len(kinds), "shown": len(rows), "refusals_shown": sum(map(len, refused.values()))}
    reason = f"{len(rows):,} samples in {output}{pending_hint(config.input)}"
    return Outcome(counters, reason=reason, output=str(output))


def _spread(kinds: Sequence[tuple[Any, ...]], count: int, seed: int) -> list[tuple[int, int]]:
    """(file, row) of `count` samples: task and combination in turn, and within these the languages."""
    groups: dict[tuple[str, str], dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for file, row, task, combination, language in kinds:
        groups[task, combination][language].append((file, row))
    draw = random.Random(seed)
    turns = []
    for _, by_language in sorted(groups.items()):
        for places in by_language.values():
            draw.shuffle(places)
        languages = sorted(by_language)
        draw.shuffle(languages)
        turns.append(
            [
                by_language[language][turn]
                for turn in range(max(map(len, by_language.values())))
                for language in languages
                if turn < len(by_language[language])
            ]
        )
    longest = max(map(len, turns), default=0)
    return [places[turn] for turn in range(longest) for places in turns if turn < len(places)][:count]


def _rows_at(files: Sequence[AnyPath], places: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """The rows, in the order of `places`; of each file only the row groups that hold one."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for number in sorted({file for file, _ in places}):
        parquet, start = open_samples(files[number]), 0
        wanted = sorted(row for file, row in places if file == number)
        for group in range(parquet.metadata.num_row_groups):
            stop = start + parquet.metadata.row_group(group).num_rows
            here = [row for row in wanted if start <= row < stop]
            if here:
                table = parquet.read_row_group(group).take(pa.array([row - start for row in here]))
                rows |= {(number, row): record for row, record in zip(here, table.to_pylist(), strict=True)}
            start = stop
    return (rows[place] for place in places)


def _refused(folder: Path, count: int) -> dict[str, list[dict[str, str]]]:
    """The first refusals of each reason."""
    refused: dict[str, list[dict[str, str]]] = defaultdict(list)
    for file in sorted((folder / QUARANTINE_FOLDER).glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(1 << 16):
            for row in batch.to_pylist():
                if len(refused[row["reason"]]) < count:
                    refused[row["reason"]].append(row)
    return dict(sorted(refused.items()))
