"""The samples in another layout: synth export input=samples/ output=dataset/ layout=hub|datasets"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.progress import Progress
from mme5core.schemas import SAMPLES
from mme5core.synthesis.export import HUB, HUB_FILES, card, datasets_schema, hub_row
from mme5core.tables import of_size
from rayjobs.command.outcome import Outcome
from rayjobs.folder.staged import staged_folder
from rayjobs.synth.config import ExportConfig
from rayjobs.synth.samples import KINDS, open_samples, pending_hint, sample_files

ROWS_AT_ONCE = 256


def run(config: ExportConfig) -> Outcome:
    """Write the samples in another layout; the folder appears whole or not at all."""
    files = sample_files(config.input)
    total = sum(open_samples(file).metadata.num_rows for file in files)
    counts: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    teachers: Counter[str] = Counter()
    with staged_folder(config.output) as staged, Progress("synth export", total, "samples") as progress:

        def tables() -> Iterator[pa.Table]:
            done = 0
            for file in files:
                for batch in open_samples(file).iter_batches(ROWS_AT_ONCE):
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
    counters = {"read": total, "kept": total, "refused": {}, "pending": 0}
    return Outcome(counters, reason=f"done{pending_hint(config.input)}")


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
            for task, hub_rows in rows.items():
                name = HUB_FILES[task]
                if name not in writers or num_rows[name] >= rows_per_file:
                    if name in writers:
                        writers[name].close()
                    (folder / name).mkdir(exist_ok=True)
                    number = len(list((folder / name).iterdir()))
                    writers[name] = pq.ParquetWriter(folder / name / f"train-{number:05d}.parquet", HUB)
                    num_rows[name] = 0
                writers[name].write_table(pa.Table.from_pylist(hub_rows, HUB))
                num_rows[name] += len(hub_rows)
    finally:
        for writer in writers.values():
            writer.close()


def _write_datasets(tables: Iterator[pa.Table], folder: Path, rows_per_file: int) -> None:
    schema = datasets_schema()
    (folder / "data").mkdir()
    for number, table in enumerate(of_size((table.cast(SAMPLES) for table in tables), rows_per_file, SAMPLES)):
        file = folder / "data" / f"train-{number:05d}.parquet"
        pq.write_table(table.replace_schema_metadata(schema.metadata), file, row_group_size=ROWS_AT_ONCE)
