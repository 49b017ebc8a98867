"""Vectors of any corpus in Parquet: embed-corpus --config mme5 input=corpus/ model=run/model output=vectors/"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.content_key import content_key
from mme5core.images import BadImage
from mme5core.model_folder import check_adapter, check_model_files, encoder_settings, model_identity, model_width
from mme5core.prompt_styles import check_style
from mme5core.readers import CorpusRow, ReadOptions, input_identity, read_rows
from mme5core.storage import locate
from mme5core.types import Content, Rejected
from mme5core.vectors import Int8Calibration, VectorFormat, cut
from rayjobs import cli, worklog
from rayjobs.cluster import actor_cpus, connected, rows_to_tables
from rayjobs.config import ConfigError, EmbedCorpusConfig, fingerprint, row_keys
from rayjobs.output import JobFolder, Run
from rayjobs.progress import Progress
from rayjobs.scan import Index, scan, shards_of

Instructions = dict[str, str | None]


def work_schema(dimension: int) -> pa.Schema:
    """A distinct content that was embedded, or why it could not be. `key` is its 16-byte hash."""
    return pa.schema(
        [
            ("key", pa.binary(16)),
            ("embedding", pa.list_(pa.float32(), dimension)),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ]
    )


CONTENTS = pa.schema(
    [("key", pa.binary(16)), ("text", pa.string()), ("image", pa.binary()), ("instruction", pa.string())]
)


def run(config: EmbedCorpusConfig) -> cli.Outcome:
    shards = shards_of(config.input, pictures=True)
    try:
        check_model_files(config.model)
        if config.adapter:
            check_adapter(config.adapter)
        if config.prompt_style:
            check_style(config.prompt_style)
        dimension = model_width(config.model)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if dimension is None:
        here = "its configuration names no width" if Path(config.model).is_dir() else "no such folder here"
        raise ConfigError(f"no model at {config.model!r}: {here}, and the hub gives none of that name")
    try:
        vector_format = VectorFormat(
            dimension, config.vectors.dim or dimension, config.vectors.dtype, tuple(config.vectors.also)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    identities = {"input": input_identity(shards), "model": model_identity(config.model)}
    if config.adapter:
        identities["adapter"] = model_identity(config.adapter)
    folder = JobFolder(
        config.output,
        Run("embed-corpus", config.model_dump(), fingerprint(config, **identities), row_keys(config), identities),
    )
    finished = folder.open()
    if finished:
        return cli.Outcome(finished["counters"], reason="already done")
    instructions: Instructions = config.instruction.model_dump()
    rows = folder.work / "rows"
    rows.mkdir(exist_ok=True)
    with connected() as ray:
        index = scan(
            ray,
            shards,
            key_of=KeyOf(instructions),
            limit=config.limit,
            cache=folder.work / "index.arrow",
            label="embed-corpus",
            options=ReadOptions(config.side, config.pictures),
        )
        if not index.usable().num_rows:
            reasons = Counter(refused.reason for refused in index.refused())
            counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            raise ConfigError(f"nothing in the input can be embedded: {counts} ({index.refused()[0].detail})")
        _embed_all(ray, config, index, instructions, rows, dimension)
    return _finish(folder, config, index, worklog.WorkLog(rows, work_schema(dimension)), vector_format)


class KeyOf:
    """The content key of a row under the job's instructions; a class, since it travels to the workers."""

    def __init__(self, instructions: Instructions) -> None:
        self._instructions = instructions

    def __call__(self, row: CorpusRow) -> bytes:
        return content_key(row.text, row.image, instruction_of(row, self._instructions))


def instruction_of(row: CorpusRow, instructions: Instructions) -> str | None:
    """The row's own instruction, else the job's for its modality."""
    return row.instruction or instructions[Content(row.text, row.image).modality]


def _embed_all(
    ray: Any, config: EmbedCorpusConfig, index: Index, instructions: Instructions, rows: Path, dimension: int
) -> None:
    """Embed the first row of every distinct content that has no vector yet."""
    usable = index.usable()
    done = worklog.WorkLog(rows, work_schema(dimension))
    keys = usable["key"].combine_chunks()
    codes = keys.dictionary_encode()
    _, first = np.unique(codes.indices.to_numpy(), return_index=True)
    chosen = usable.take(pa.array(np.sort(first)))
    missing = chosen.filter(pa.array(done.find(chosen["key"].combine_chunks()) < 0))
    if not missing.num_rows:
        return
    items = []
    for shard in pc.unique(missing["shard"]).to_pylist():
        positions = missing.filter(pc.equal(missing["shard"], shard))["position"].to_pylist()
        items.append({"path": str(index.shards[shard]), "positions": positions})
    embedded = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(
            _read_contents,
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={
                "instructions": instructions,
                "rows_per_table": config.window_rows,
                "options": ReadOptions(config.side, config.pictures),
            },
        )
        .map_batches(
            Embed,
            fn_constructor_args=(config.model_dump(), str(rows)),
            batch_size=config.window_rows,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=config.num_workers),
            num_cpus=actor_cpus(ray, config.num_workers, 1.0),
            num_gpus=1 if ray.cluster_resources().get("GPU", 0) >= config.num_workers else 0,
        )
    )
    num_done = chosen.num_rows - missing.num_rows
    with Progress("embed-corpus", chosen.num_rows, "contents", done=num_done) as progress:
        for batch in rows_to_tables(embedded):
            for row in batch.to_pylist():
                if row["failure"]:
                    error = ConfigError if row["failure"].startswith("cannot load") else cli.JobFailed
                    raise error(row["failure"])
                num_done += row["count"]
            progress.update(num_done)


def _read_contents(
    batch: pa.Table, *, instructions: Instructions, rows_per_table: int, options: ReadOptions
) -> Iterator[pa.Table]:
    """The contents at the wanted positions of a shard, in tables of a window each."""
    key_of = KeyOf(instructions)
    for item in batch.to_pylist():
        wanted = set(item["positions"])
        records: list[dict[str, Any]] = []
        for position, row in enumerate(read_rows(locate(item["path"]), options)):
            if position not in wanted:
                continue
            records.append(
                {
                    "key": key_of(row),
                    "text": row.text,
                    "image": row.image,
                    "instruction": instruction_of(row, instructions),
                }
            )
            if len(records) >= rows_per_table:
                yield pa.Table.from_pylist(records, CONTENTS)
                records = []
        yield pa.Table.from_pylist(records, CONTENTS)


class Embed:
    """The actor: contents in, vectors into the work folder, counts out."""

    def __init__(self, config: dict[str, Any], rows: str) -> None:
        import torch

        from mme5core.encoder import Encoder

        if not torch.cuda.is_available():
            import os

            num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            torch.set_num_threads(max(1, num_cpus // config["num_workers"]))
        self._config, self._rows = config, Path(rows)
        self._refused = ""
        try:
            self._encoder = Encoder.load(
                config["model"],
                config["adapter"],
                config["prompt_style"],
                config["device"],
                config["dtype"],
                remote_code=config["remote_code"],
            )
        except Exception as error:  # raised here, it would come out as Ray's tracebacks
            self._refused = (str(error).strip().splitlines() or [type(error).__name__])[0]

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        if self._refused:
            return {"count": [0], "failure": [f"cannot load model {self._config['model']!r}: {self._refused}"]}
        try:
            table = self._embed(batch)
            worklog.append(self._rows, table)
        except (OSError, ValueError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return {"count": [0], "failure": [f"cannot embed: {first}"]}
        return {"count": [table.num_rows], "failure": [""]}

    def _embed(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        refused: list[dict[str, Any]] = []

        def on_bad(place: int, error: BadImage) -> None:
            refused.append({"key": rows[place]["key"], "reason": error.reason, "detail": error.detail})

        keys, vectors = [], [np.zeros((0, self._encoder.dimension), dtype=np.float32)]
        for places, vector_BD in self._encoder.stream(
            [Content(row["text"], row["image"]) for row in rows],
            [row["instruction"] for row in rows],
            batch_size=self._config["batch_size"],
            max_batch_tokens=self._config["max_batch_tokens"],
            max_pictures=self._config["max_batch_pictures"],
            num_threads=self._config["picture_threads"],
            on_bad=on_bad,
        ):
            keys += [rows[place]["key"] for place in places]
            vectors.append(vector_BD)
        vector_ND = np.concatenate(vectors)
        schema = work_schema(self._encoder.dimension)
        embedded = pa.table(
            {
                "key": pa.array(keys, pa.binary(16)),
                "embedding": pa.FixedSizeListArray.from_arrays(vector_ND.ravel(), self._encoder.dimension),
                "reason": pa.nulls(len(keys), pa.string()),
                "detail": pa.nulls(len(keys), pa.string()),
            },
            schema=schema,
        )
        return pa.concat_tables([embedded, pa.Table.from_pylist(refused, schema)])


def _finish(
    folder: JobFolder, config: EmbedCorpusConfig, index: Index, done: worklog.WorkLog, vector_format: VectorFormat
) -> cli.Outcome:
    """Every row by id with the vector of its content; rows whose content was refused go to quarantine."""
    usable = index.usable().sort_by("id")
    places = done.find(usable["key"].combine_chunks())
    refused = index.refused()
    reasons = done.column("reason")
    is_bad = np.asarray(pc.is_valid(reasons))[places] if len(done) else np.zeros(len(places), dtype=bool)
    is_missing = places < 0  # its content is not what it was when the corpus was scanned
    is_bad &= ~is_missing
    bad = np.flatnonzero(is_bad)
    for row, place in zip(bad, places[bad], strict=True):
        detail = done.column("detail")[int(place)].as_py()
        refused.append(Rejected(usable["id"][int(row)].as_py(), reasons[int(place)].as_py(), detail or ""))
    good = np.flatnonzero(~is_bad & ~is_missing)
    refused += [
        Rejected(usable["id"][int(row)].as_py(), "changed_since_scan", "its content changed while the job ran")
        for row in np.flatnonzero(is_missing)
    ]
    calibration = None
    if "int8" in vector_format.also and len(good):
        calibration = Int8Calibration.fit(_matrix(table, vector_format) for table in done.take(places[good]))
    schema = pa.schema(
        [("id", pa.string()), *vector_format.fields()], _file_metadata(folder, config, vector_format, calibration)
    )
    num_kept = folder.write_parts(
        _vector_tables(usable, good, done, places, vector_format, calibration),
        schema,
        rows_per_file=config.rows_per_file,
    )
    counters = folder.finish(
        unit="corpus rows",
        num_read=len(index),
        num_kept=num_kept,
        refused=folder.write_quarantine(refused),
        pending=0,
        extra_counters={"distinct": len(set(places[good].tolist()))},
        details={"dimension": vector_format.dim},
    )
    return cli.Outcome(counters)


def _vector_tables(
    usable: pa.Table,
    good: np.ndarray,
    done: worklog.WorkLog,
    places: np.ndarray,
    vector_format: VectorFormat,
    calibration: Int8Calibration | None,
) -> Iterator[pa.Table]:
    start = 0
    for table in done.take(places[good]):
        ids = usable["id"].take(pa.array(good[start : start + table.num_rows]))
        start += table.num_rows
        yield pa.table({"id": ids} | vector_format.arrays(_matrix(table, vector_format), calibration))


def _matrix(table: pa.Table, vector_format: VectorFormat) -> np.ndarray:
    """float32 [N, dim] of work rows."""
    column = table["embedding"].combine_chunks()
    return cut(column.flatten().to_numpy().reshape(len(column), vector_format.width), vector_format.dim)


def _file_metadata(
    folder: JobFolder, config: EmbedCorpusConfig, vector_format: VectorFormat, calibration: Int8Calibration | None
) -> dict[str, str]:
    """What made the vectors, in every file: two parts that disagree do not belong together."""
    settings = encoder_settings(config.adapter or config.model)
    made_by = {
        "model": folder.run.identities["model"],
        "adapter": folder.run.identities.get("adapter", ""),
        "prompt_style": config.prompt_style or settings["prompt_style"],
        "pooling": settings["pooling"],
        "dtype": config.dtype,
        "dim": str(vector_format.dim),
    }
    found = {f"mme5.{name}": value for name, value in made_by.items() if value}
    found |= {
        "mme5.model_name": config.model,
        "mme5.model_identity": hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16],
        "mme5.fingerprint": folder.run.fingerprint,
        "mme5.normalized": "true",
    }
    if calibration is not None:
        found["mme5.int8_low"] = json.dumps(calibration.low.tolist())
        found["mme5.int8_step"] = json.dumps(calibration.step.tolist())
    return found


def main() -> None:
    cli.main("embed-corpus", {"": run})


if __name__ == "__main__":
    main()
