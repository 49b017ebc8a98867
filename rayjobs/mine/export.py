"""Samples with mined negatives: mine export samples=samples/ neighbours=near/ output=dataset/ layout=samples"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.judge.candidates import ToJudge
from mme5core.judge.plan import plan_judging
from mme5core.progress import Progress
from mme5core.sample_readers import tuples
from mme5core.sample_readers.files import sample_files
from mme5core.sample_readers.ours import to_row
from mme5core.sample_table import SampleTable
from mme5core.schemas import JUDGED, NEIGHBOURS
from mme5core.synthesis.export import HUB, hub_row
from mme5core.tables import files_with
from mme5core.types import Rejected, Sample
from rayjobs.command.outcome import Outcome
from rayjobs.folder.staged import exported, staged_folder
from rayjobs.mapped_samples import map_once
from rayjobs.mine.config import ExportConfig

ROWS_AT_ONCE, ROWS_PER_FILE = 256, 20_000


@dataclass(frozen=True, slots=True)
class Layout:
    """How a sample becomes a row; `row` raises ValueError for one that the layout cannot hold."""

    schema: pa.Schema
    row: Callable[[Sample, Path], dict[str, Any]]


def run(config: ExportConfig) -> Outcome:
    """Write the samples with mined negatives."""
    neighbours = files_with(config.neighbours, NEIGHBOURS, "neighbours")
    sources = {"samples": sample_files(config.samples)}
    num_kept = 0
    with staged_folder(config.output) as staged, tempfile.TemporaryDirectory(dir=staged.parent) as folder:
        work = Path(folder)
        file = work / "samples.arrow"
        refused, num_read = map_once(
            sources, file, job="mine export", num_negatives=0, limit=config.limit, images=config.images
        )
        table = SampleTable(file)
        keys = table.positive_keys
        plan = plan_judging(table.ids(), neighbours, work / "candidates.int64", positive_keys=keys, candidate_keys=keys)
        if plan.num_unknown:
            print(f"mine export: {plan.num_unknown:,} neighbours name others than the samples", file=sys.stderr)
        mined = ToJudge(file, None, plan, ROWS_PER_FILE)
        layout = _layout(config, table)
        with Progress("mine export", len(table), "samples") as progress:
            for number, (start, stop) in enumerate(mined.blocks()):
                rows = _rows(config, mined, layout, range(start, stop), staged, refused)
                num_kept += _write(staged / f"train-{number:05d}.parquet", layout.schema, rows)
                progress.update(stop)
        return exported(staged, num_read=num_read, num_kept=num_kept, refused=refused)


def _layout(config: ExportConfig, table: SampleTable) -> Layout:
    if config.layout == "samples":
        return Layout(_OURS, lambda sample, _: to_row(sample))
    if config.layout == "mme5":
        return Layout(HUB, _hub_row)
    has_pictures = any("I" in combination for combination in table.combinations)
    count = config.num_negatives

    def row(sample: Sample, _: Path) -> dict[str, Any]:
        return tuples.to_row(sample, count, has_pictures=has_pictures)

    return Layout(tuples.schema_of(count, has_pictures=has_pictures), row)


def _rows(
    config: ExportConfig, mined: ToJudge, layout: Layout, positions: range, folder: Path, refused: list[Rejected]
) -> Iterator[dict[str, Any]]:
    tables = mined.tables()
    for position in positions:
        candidates = mined.plan.candidates(position)[: config.num_negatives]
        sample = tables.samples[position]
        if not len(candidates):
            refused.append(Rejected(sample.id, "no_candidate", "no neighbour of it is the positive of another sample"))
            continue
        negatives = tuple(tables.candidate(int(candidate)) for candidate in candidates)
        try:
            yield layout.row(replace(sample, negatives=negatives, scores=()), folder)
        except ValueError as error:
            refused.append(Rejected(sample.id, "not_of_the_layout", str(error)))


def _write(file: Path, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> int:
    num_rows, waiting = 0, list[dict[str, Any]]()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for row in rows:
            waiting.append(row)
            if len(waiting) == ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                num_rows, waiting = num_rows + len(waiting), []
        writer.write_table(pa.Table.from_pylist(waiting, schema))
    return num_rows + len(waiting)


_OURS = pa.schema([field for field in JUDGED if field.name not in ("scores", "negative_ids")])


def _hub_row(sample: Sample, folder: Path) -> dict[str, Any]:
    row = to_row(sample)
    if any(struct["images"] for struct in (row["query"], row["positive"], *row["negatives"])):
        raise ValueError("the layout takes one picture a content")
    hub, pictures = hub_row(row)
    for path, data in pictures.items():
        if not (folder / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return hub
