"""What else `synth` does with samples: show them (`synth gallery`), hand them on (`synth export`)."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.errors import first_line
from mme5core.schemas import SAMPLES
from mme5core.storage import AnyPath, parquet_file
from mme5core.synthesis.export import HUB, HUB_FILES, card, datasets_schema, hub_row
from mme5core.synthesis.gallery import page
from rayjobs import cli
from rayjobs.config import ConfigError, ExportConfig, GalleryConfig
from rayjobs.output import MANIFEST, QUARANTINE_FOLDER, of_size
from rayjobs.progress import Progress
from rayjobs.scan import shards_of

KINDS = ("task", "modality_combination", "language")
ROWS_AT_ONCE = 256


def gallery(config: GalleryConfig) -> cli.Outcome:
    """Write the page."""
    files = _sample_files(config.input)
    kinds = [
        (file, row, *values.values())
        for file, path in enumerate(files)
        for row, values in enumerate(_open(path).read(columns=list(KINDS)).to_pylist())
    ]
    chosen = _spread(kinds, config.num_samples, config.seed)
    rows = list(_rows_at(files, chosen))
    refused = _refused(Path(config.input), config.num_refused)
    if not rows and not refused:
        raise ConfigError(f"input {config.input!r} has neither samples nor refusals to show")
    output = Path(config.output or f"{config.input.rstrip('/')}-gallery.html").resolve()
    if output.is_dir():
        raise ConfigError(f"output {str(output)!r} is a folder; a gallery is a file, as {output.name}.html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(config.title or Path(config.input).name, rows, refused))
    except OSError as error:
        raise ConfigError(f"output {str(output)!r} cannot be written ({error.strerror})") from None
    counters = {"read": len(kinds), "shown": len(rows), "refusals_shown": sum(map(len, refused.values()))}
    reason = f"{len(rows):,} samples in {output}{_unfinished(config.input)}"
    return cli.Outcome(counters, reason=reason, output=str(output))


def _unfinished(folder: str) -> str:
    """What to say of a folder in which samples are pending still."""
    try:
        pending = json.loads((Path(folder) / MANIFEST).read_text())["counters"]["pending"]
    except (OSError, ValueError, LookupError):
        return ""
    return f"; {pending:,} are pending still: run synth again to have them too" if pending else ""


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
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number in sorted({file for file, _ in places}):
        parquet, start = _open(files[number]), 0
        wanted = sorted(row for file, row in places if file == number)
        for group in range(parquet.metadata.num_row_groups):
            stop = start + parquet.metadata.row_group(group).num_rows
            here = [row for row in wanted if start <= row < stop]
            if here:
                table = parquet.read_row_group(group).take(pa.array([row - start for row in here]))
                found |= {(number, row): record for row, record in zip(here, table.to_pylist(), strict=True)}
            start = stop
    return (found[place] for place in places)


def _refused(folder: Path, count: int) -> dict[str, list[dict[str, str]]]:
    """The first refusals of each reason."""
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for file in sorted((folder / QUARANTINE_FOLDER).glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(1 << 16):
            for row in batch.to_pylist():
                if len(found[row["reason"]]) < count:
                    found[row["reason"]].append(row)
    return dict(sorted(found.items()))


def export(config: ExportConfig) -> cli.Outcome:
    """Write the samples in another layout; the folder appears whole or not at all."""
    files = _sample_files(config.input)
    output = Path(config.output)
    if not config.output:
        raise ConfigError("'output' is required: the folder to write")
    if output.exists():
        raise ConfigError(f"output {config.output!r} is there already: choose another, or remove it")
    staged = output.with_name(f".{output.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    total = sum(_open(file).metadata.num_rows for file in files)
    counts: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    teachers: Counter[str] = Counter()
    with Progress("synth export", total, "samples") as progress:

        def tables() -> Iterator[pa.Table]:
            done = 0
            for file in files:
                for batch in _open(file).iter_batches(ROWS_AT_ONCE):
                    table = pa.table(batch)
                    for name in KINDS:
                        counts[name].update(table[name].to_pylist())
                    teachers.update(table["teacher"].to_pylist())
                    yield table
                    done += len(table)
                    progress.update(done)

        write = _write_hub if config.layout == "hub" else _write_datasets
        write(tables(), staged, config.rows_per_file)
    text = card(config.title or Path(config.input).name, counts, total, sorted(teachers), layout=config.layout)
    (staged / "README.md").write_text(text)
    staged.rename(output)
    counters = {"read": total, "kept": total, "refused": {}, "pending": 0}
    return cli.Outcome(counters, reason=f"done{_unfinished(config.input)}")


def _write_hub(tables: Iterator[pa.Table], folder: Path, rows_per_file: int) -> None:
    """A folder per task, and the pictures beside them, each once."""
    writers: dict[str, pq.ParquetWriter] = {}
    num_rows: Counter[str] = Counter()
    try:
        for table in tables:
            rows: dict[str, list[dict[str, str]]] = defaultdict(list)
            for row in table.to_pylist():
                hub, pictures = hub_row(row)
                rows[row["task"]].append(hub)
                for path, data in pictures.items():
                    if not (folder / path).exists():
                        (folder / path).parent.mkdir(parents=True, exist_ok=True)
                        (folder / path).write_bytes(data)
            for task, found in rows.items():
                name = HUB_FILES[task]
                if name not in writers or num_rows[name] >= rows_per_file:
                    if name in writers:
                        writers[name].close()
                    (folder / name).mkdir(exist_ok=True)
                    number = len(list((folder / name).iterdir()))
                    writers[name] = pq.ParquetWriter(folder / name / f"train-{number:05d}.parquet", HUB)
                    num_rows[name] = 0
                writers[name].write_table(pa.Table.from_pylist(found, HUB))
                num_rows[name] += len(found)
    finally:
        for writer in writers.values():
            writer.close()


def _write_datasets(tables: Iterator[pa.Table], folder: Path, rows_per_file: int) -> None:
    schema = datasets_schema()
    (folder / "data").mkdir()
    for number, table in enumerate(of_size((table.cast(SAMPLES) for table in tables), rows_per_file, SAMPLES)):
        file = folder / "data" / f"train-{number:05d}.parquet"
        pq.write_table(table.replace_schema_metadata(schema.metadata), file, row_group_size=ROWS_AT_ONCE)


def _sample_files(folder: str) -> list[AnyPath]:
    """The files of samples that `synth` wrote; none where it kept nothing."""
    files = shards_of([folder], suffixes=(".parquet",))
    for file in files:
        missing = [name for name in SAMPLES.names if name not in _open(file).schema_arrow.names]
        if missing:
            raise ConfigError(f"{file}: no samples as synth writes them, it has no column {missing[0]!r}")
    return files


def _open(file: AnyPath) -> pq.ParquetFile:
    try:
        return parquet_file(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as Parquet ({first_line(error)})") from None
