"""Vectors of any corpus in Parquet: embed-corpus --config mme5 input=corpus/ model=run/model output=vectors/"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.content_key import content_key
from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.model_folder import check_adapter, check_model_files, encoder_settings, model_identity, model_width
from mme5core.peers import SentenceTransformerEncoder, sentence_transformer_width
from mme5core.prompt_styles import check_style
from mme5core.readers import CorpusRow, ReadOptions, input_files, input_identity, read_rows
from mme5core.storage import AnyPath, locate
from mme5core.types import Content, Rejected
from mme5core.vectors import Int8Calibration, VectorFormat, cut
from rayjobs import cli
from rayjobs.cluster import actor_cpus, connected, rows_to_tables, threads_per_worker
from rayjobs.config import ConfigError, EmbedCorpusConfig
from rayjobs.contents import Contents, VectorLog, append, number_contents, vector_schema
from rayjobs.external import sort_tables
from rayjobs.output import JobFolder, job_folder, of_size, part_name, parts_in
from rayjobs.progress import Progress
from rayjobs.scan import Index, ScanShard, one_side, rows_of, scan, shards_of, wait_until_seen
from rayjobs.source_columns import SourceColumns

if TYPE_CHECKING:
    from mme5core.encoder import Encoder

Instructions = dict[str, str | None]


CONTENTS = pa.schema(
    [
        ("content", pa.int64()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("instruction", pa.string()),
        ("reason", pa.string()),  # set where the row is not what it was when the corpus was scanned
    ]
)
WINDOW_BYTES = 1 << 26
WINDOWS_PER_TASK, TASKS_PER_CPU = 8, 4
SLICE_BYTES = 1 << 26


def run(config: EmbedCorpusConfig, *, load: Callable[[dict[str, Any]], Any] | None = None) -> cli.Outcome:
    """
    Args:
        load: makes the encoder of an actor from the job's configuration; None: the model that this names.
    """
    shards = one_side(shards_of(config.input, pictures=True), config.side)
    dimension = checked_width(config)
    try:
        vector_format = VectorFormat(
            dimension, config.vectors.dim or dimension, config.vectors.dtype, tuple(config.vectors.also)
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if taken := {"id", "embedding", "embedding_int8", "embedding_binary"} & set(config.columns):
        raise ConfigError(f"'columns' names {sorted(taken)[0]!r}, which the job writes itself")
    folder = embed_folder(config, shards)
    finished = folder.open()
    if finished:
        return cli.Outcome(finished["counters"], reason="already done")
    instructions: Instructions = config.instruction.model_dump()
    options = ReadOptions(config.side, config.pictures, columns=tuple(config.columns))
    rows = folder.work / "rows"
    rows.mkdir(exist_ok=True)
    with connected() as ray:
        task = ScanShard(folder.work / "index", KeyOf(instructions), config.limit, options)
        index = scan(ray, shards, task, label="embed-corpus")
        if not index.num_usable:
            reasons = Counter(refused.reason for refused in index.refused())
            counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            detail = next(index.refused()).detail
            raise ConfigError(f"nothing in the input can be embedded: {counts} ({detail})")
        source = SourceColumns.of(index, config.columns, folder.work / "columns.json")
        contents = number_contents(index, folder.work)
        num_done = _embed_all(
            ray, config, index, contents, instructions, VectorLog(rows, dimension), load or load_encoder
        )
        wait_until_seen(lambda: VectorLog(rows, dimension).count(len(contents), folder.work / "done") >= num_done, rows)
        return _finish(ray, folder, config, index, contents, VectorLog(rows, dimension), vector_format, source)


def embed_folder(config: EmbedCorpusConfig, shards: Sequence[AnyPath]) -> JobFolder:
    files = input_files(shards)
    identities = {"input": input_identity(files), "model": model_identity(config.model)}
    if config.adapter:
        identities["adapter"] = model_identity(config.adapter)
    return job_folder("embed-corpus", config, identities, files)


def checked_width(config: EmbedCorpusConfig) -> int:
    """Width of the model's vectors, once it is known that there is such a model."""
    try:
        if config.library == "sentence-transformers":
            for key in ("adapter", "prompt_style"):
                if getattr(config, key):
                    raise ConfigError(f"'{key}' has no meaning with library=sentence-transformers")
            return sentence_transformer_width(config.model, remote_code=config.remote_code)
        check_model_files(config.model)
        if config.adapter:
            check_adapter(config.adapter)
        if config.prompt_style:
            check_style(config.prompt_style)
        dimension = model_width(config.model)
    except ValueError as error:
        if (Path(config.model) / "modules.json").is_file() and config.library == "mme5":
            raise ConfigError(
                f"{error}; a model of sentence-transformers takes library=sentence-transformers"
            ) from None
        raise ConfigError(str(error)) from None
    if dimension is None:
        here = "its configuration names no width" if Path(config.model).is_dir() else "no such folder here"
        raise ConfigError(f"no model at {config.model!r}: {here}, and the hub gives none of that name")
    return dimension


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
    ray: Any,
    config: EmbedCorpusConfig,
    index: Index,
    contents: Contents,
    instructions: Instructions,
    log: VectorLog,
    load: Callable[[dict[str, Any]], Any],
) -> int:
    """Embed the first row of every distinct content that has no vector yet; returns how many are done then."""
    done = index.folder.parent / "done"
    is_done = log.locate(len(contents), done) >= 0
    num_done = int(is_done.sum())
    items = [
        {"shard": shard, "path": str(path)}
        for shard, path in enumerate(index.shards)
        if not is_done[contents.starts[shard] : contents.starts[shard + 1]].all()
    ]
    if not items:
        return num_done
    # A task reads several small shards, so that their rows share windows.
    num_windows = -(-(len(contents) - num_done) // config.window_rows)
    num_tasks = max(num_windows // WINDOWS_PER_TASK, TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
    # So that Ray neither joins windows nor cuts them: each is a row of its own, and a block.
    ray.data.DataContext.get_current().target_max_block_size = 1
    embedded = (
        ray.data.from_items(items, override_num_blocks=min(num_tasks, len(items)))
        .map_batches(
            ReadContents(
                index.folder,
                index.starts,
                contents,
                done,
                instructions,
                config.window_rows,
                ReadOptions(config.side, config.pictures),
            ),
            batch_size=None,
            batch_format="pyarrow",
            memory=WINDOW_BYTES,  # without a demand of its own Ray runs it inside of the actor, which waits for it
        )
        .map_batches(
            Embed,
            fn_constructor_args=(load, config.model_dump(), str(log.folder), log.dimension),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=config.num_workers),
            num_cpus=actor_cpus(ray, config.num_workers, 1.0),
            num_gpus=1 if ray.cluster_resources().get("GPU", 0) >= config.num_workers else 0,
        )
    )
    with Progress("embed-corpus", len(contents), "contents", done=num_done) as progress:
        for batch in rows_to_tables(embedded):
            for row in batch.to_pylist():
                if row["failure"]:
                    error = ConfigError if row["failure"].startswith("cannot load") else cli.JobFailed
                    raise error(row["failure"])
                num_done += row["count"]
            progress.update(num_done)
    return num_done


@dataclass(frozen=True, slots=True)
class ReadContents:
    """The task: shards in, those of their rows out with which a content begins that has no vector yet.

    They come in windows of at most `window_rows` and about WINDOW_BYTES, each one value: a table in Arrow's format.
    A row that cannot be read a second time is left out, and so has no vector at the end.
    """

    index: Path
    row_starts: np.ndarray
    contents: Contents
    done: Path
    instructions: Instructions
    window_rows: int
    options: ReadOptions

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        window: list[dict[str, Any]] = []
        num_bytes = 0
        for item in batch.to_pylist():
            for record in self._read(item):
                window.append(record)
                num_bytes += len(record.get("text") or "") + len(record.get("image") or b"")
                if len(window) >= self.window_rows or num_bytes >= WINDOW_BYTES:
                    yield _packed(window)
                    window, num_bytes = [], 0
        if window:
            yield _packed(window)

    def _wanted(self, shard: int) -> Iterator[tuple[int, int, bytes]]:
        """(position in the shard, content, its key) of the rows to read."""
        begun, end = (int(start) for start in self.contents.starts[shard : shard + 2])
        is_done = np.fromfile(self.done, np.int64, end - begun, offset=8 * begun) >= 0
        first_row = int(self.row_starts[shard])
        newest = begun - 1
        for rows, table in rows_of(self.index, shard, first_row, ["key"]):
            of_rows = self.contents.of(int(rows[0]), len(rows))
            highest = np.maximum.accumulate(np.concatenate([[newest], of_rows]))
            places = np.flatnonzero(of_rows > highest[:-1])
            places = places[~is_done[of_rows[places] - begun]]
            newest = int(highest[-1])
            keys = table["key"].take(pa.array(places)).to_pylist()
            yield from zip((rows[places] - first_row).tolist(), of_rows[places].tolist(), keys, strict=True)

    def _read(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        key_of = KeyOf(self.instructions)
        wanted = self._wanted(item["shard"])
        target = next(wanted, None)
        try:
            for position, row in enumerate(read_rows(locate(item["path"]), self.options)):
                if target is None:
                    return
                if position != target[0]:
                    continue
                if row.refused is None:
                    record: dict[str, Any] = {"content": target[1]}
                    if key_of(row) != target[2]:
                        record["reason"] = "changed_since_scan"
                    else:
                        record |= {
                            "text": row.text,
                            "image": row.image,
                            "instruction": instruction_of(row, self.instructions),
                        }
                    yield record
                target = next(wanted, None)
        except OSError:
            return


def _packed(records: list[dict[str, Any]]) -> pa.Table:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, CONTENTS) as writer:
        writer.write_table(pa.Table.from_pylist(records, CONTENTS))
    return pa.table({"window": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})


def load_encoder(config: dict[str, Any]) -> Encoder | SentenceTransformerEncoder:
    """The model that the job's configuration names, in this process."""
    from mme5core.encoder import Encoder

    if config["library"] == "sentence-transformers":
        return SentenceTransformerEncoder(
            config["model"],
            device=config["device"],
            dtype=config["dtype"],
            max_tokens=config["max_tokens"],
            remote_code=config["remote_code"],
        )
    encoder = Encoder.load(
        config["model"],
        config["adapter"],
        config["prompt_style"],
        config["device"],
        config["dtype"],
        remote_code=config["remote_code"],
    )
    encoder.max_tokens = config["max_tokens"] or encoder.max_tokens
    return encoder


class Embed:
    """The actor: contents in, vectors into the work folder, counts out."""

    def __init__(
        self, load: Callable[[dict[str, Any]], Any], config: dict[str, Any], rows: str, dimension: int
    ) -> None:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(threads_per_worker(config["num_workers"]))
        self._config, self._rows = config, Path(rows)
        self._refused = ""
        try:
            self._encoder = load(config)
            if self._encoder.dimension != dimension:
                self._refused = f"its vectors have width {self._encoder.dimension}, its files say {dimension}"
        except Exception as error:  # raised here, it would come out as Ray's tracebacks
            self._refused = first_line(error)

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        if self._refused:
            return {"count": [0], "failure": [f"cannot load model {self._config['model']!r}: {self._refused}"]}
        try:
            window = pa.ipc.open_stream(pa.py_buffer(batch["window"][0].as_py())).read_all()
            table = self._embed(window)
            append(self._rows, table)
        except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
            return {"count": [0], "failure": [f"cannot embed: {first_line(error)}"]}
        return {"count": [table.num_rows], "failure": [""]}

    def _embed(self, batch: pa.Table) -> pa.Table:
        schema = vector_schema(self._encoder.dimension)
        rows = batch.filter(pc.is_null(batch["reason"])).to_pylist()
        refused = batch.filter(pc.is_valid(batch["reason"])).select(["content", "reason"]).to_pylist()

        def on_bad(place: int, error: BadImage) -> None:
            refused.append({"content": rows[place]["content"], "reason": error.reason, "detail": error.detail})

        numbers, vectors = [], [np.zeros((0, self._encoder.dimension), dtype=np.float32)]
        for places, vector_BD in self._encoder.stream(
            [Content(row["text"], row["image"]) for row in rows],
            [row["instruction"] for row in rows],
            batch_size=self._config["batch_size"],
            max_batch_tokens=self._config["max_batch_tokens"],
            max_pictures=self._config["max_batch_pictures"],
            num_threads=self._config["picture_threads"],
            on_bad=on_bad,
        ):
            numbers += [rows[place]["content"] for place in places]
            vectors.append(vector_BD)
        embedded = pa.table(
            {
                "content": pa.array(numbers, pa.int64()),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    np.concatenate(vectors).ravel(), self._encoder.dimension
                ),
                "reason": pa.nulls(len(numbers), pa.string()),
                "detail": pa.nulls(len(numbers), pa.string()),
            },
            schema=schema,
        )
        return pa.concat_tables([embedded, pa.Table.from_pylist(refused, schema)])


def _finish(
    ray: Any,
    folder: JobFolder,
    config: EmbedCorpusConfig,
    index: Index,
    contents: Contents,
    log: VectorLog,
    vector_format: VectorFormat,
    source: SourceColumns,
) -> cli.Outcome:
    """Every row by id with the vector of its content; rows whose content was refused go to quarantine."""
    place_of = log.locate(len(contents), folder.work / "done")
    has_vector = (place_of >= 0) & (place_of < VectorLog.REFUSED)
    pending = Pending()
    calibration = None
    if "int8" in vector_format.also and has_vector.any():
        calibration = Int8Calibration.fit(cut(vectors, vector_format.dim) for vectors in log.batches())
    schema = pa.schema(
        [("id", pa.string()), *vector_format.fields(), *source.fields()],
        _file_metadata(folder, config, vector_format, calibration),
    )
    # Named by the vectors they hold: parts of a killed run are taken only where these are the same.
    staged = folder.work / f"parts-{log.digest()}"
    staged.mkdir(exist_ok=True)
    ordered = of_size(
        sort_tables(_rows_with_vectors(index, contents, place_of), folder.work / "sorting"),
        config.rows_per_file,
        ORDERED,
    )
    write = PartWriter(log, vector_format, calibration, schema, source)
    num_kept = _write_parts(ray, ordered, staged, write)
    folder.take_parts(parts_in(staged))
    counters = folder.finish(
        unit="corpus rows",
        num_read=len(index),
        num_kept=num_kept,
        refused=folder.write_quarantine(
            chain(index.refused(), _rows_without_vectors(index, contents, place_of, log, pending))
        ),
        pending=pending.num_rows,
        extra_counters={"distinct": int(has_vector.sum())},
        details={"dimension": vector_format.dim},
    )
    if pending.num_rows:
        reason = (
            f"{pending.num_rows:,} rows could not be read a second time, the first in {pending.first}: "
            "start the same command again"
        )
        return cli.Outcome(counters, cli.RESUMABLE, reason)
    unreachable = counters["refused"].get("unreachable_image", 0)
    if unreachable:
        return cli.Outcome(counters, reason=f"done, but {unreachable:,} pictures could not be reached: see _quarantine")
    return cli.Outcome(counters)


@dataclass(slots=True)
class Pending:
    """Rows that were there when the corpus was scanned, and could not be read when they were to be embedded."""

    num_rows: int = 0
    first: str = ""


ORDERED = pa.schema([("id", pa.string()), ("place", pa.int64()), ("source", pa.string())])


def _rows_with_vectors(index: Index, contents: Contents, place_of: np.ndarray) -> Iterator[pa.Table]:
    for rows, table in index.tables(["id", "source"], usable=True):
        if len(rows):
            places = place_of[contents.of(int(rows[0]), int(rows[-1] - rows[0]) + 1)[rows - rows[0]]]
            found = table.add_column(1, "place", pa.array(places)).cast(ORDERED)
            yield found.filter(pa.array((places >= 0) & (places < VectorLog.REFUSED)))


def _rows_without_vectors(
    index: Index, contents: Contents, place_of: np.ndarray, log: VectorLog, pending: Pending
) -> Iterator[Rejected]:
    for rows, table in index.tables(["id"], usable=True):
        if not len(rows):
            continue
        places = place_of[contents.of(int(rows[0]), int(rows[-1] - rows[0]) + 1)[rows - rows[0]]]
        for row in np.flatnonzero((places < 0) | (places >= VectorLog.REFUSED)).tolist():
            if places[row] < 0:
                pending.num_rows += 1
                pending.first = pending.first or index.shards[index.shard_of(int(rows[row]))].name
                continue
            reason, detail = log.refusal(int(places[row]))
            if reason == "changed_since_scan":
                detail = "its content changed while the job ran"
            yield Rejected(table["id"][row].as_py(), reason, detail)


@dataclass(frozen=True, slots=True)
class PartWriter:
    """The task: rows in their order in, one file of vectors out."""

    log: VectorLog
    vector_format: VectorFormat
    calibration: Int8Calibration | None
    schema: pa.Schema
    source: SourceColumns

    def __call__(self, rows: pa.Table, part: Path) -> str:
        """Returns what failed, or an empty string."""
        temporary = part.with_name(f".{uuid.uuid4().hex}")
        rows_per_group = max(1, SLICE_BYTES // (4 * self.vector_format.width))
        try:
            with pq.ParquetWriter(temporary, self.schema, compression="zstd") as writer:
                for start in range(0, max(1, len(rows)), rows_per_group):
                    writer.write_table(self._with_vectors(rows.slice(start, rows_per_group)))
            temporary.rename(part)
        except (OSError, ValueError, pa.ArrowException) as error:
            temporary.unlink(missing_ok=True)
            return f"cannot write {part}: {first_line(error)}"
        return ""

    def _with_vectors(self, rows: pa.Table) -> pa.Table:
        vector_ND = cut(self.log.vectors(rows["place"].to_numpy()), self.vector_format.dim)
        columns = {"id": rows["id"]} | self.vector_format.arrays(vector_ND, self.calibration)
        return pa.table(columns | self.source.arrays(rows["source"]), schema=self.schema)


def _write_parts(ray: Any, ordered: Iterator[pa.Table], staged: Path, write: PartWriter) -> int:
    """A task for each part that is not there yet, a few at once; returns how many rows they hold."""
    task = ray.remote(num_cpus=1)(_write_part)
    shared = ray.put(write)
    running: list[Any] = []
    num_rows = 0
    num_at_once = 1 + int(ray.cluster_resources().get("CPU", 1))

    def wait_for(count: int) -> None:
        while len(running) > count:
            (done,), running[:] = ray.wait(running, num_returns=1)
            try:
                failure = ray.get(done)
            except ray.exceptions.RayError as error:
                failure = f"cannot write the vectors: {first_line(error)}"
            if failure:
                raise cli.JobFailed(failure)

    with Progress("embed-corpus: writing", 0, "rows") as progress:
        for number, rows in enumerate(ordered):
            part = staged / part_name(number)
            if not part.is_file():
                wait_for(num_at_once - 1)
                running.append(task.remote(shared, rows, part))
            num_rows += len(rows)
            progress.update(num_rows)
        wait_for(0)
    return num_rows


def _write_part(write: PartWriter, rows: pa.Table, part: Path) -> str:
    return write(rows, part)


def _file_metadata(
    folder: JobFolder, config: EmbedCorpusConfig, vector_format: VectorFormat, calibration: Int8Calibration | None
) -> dict[str, str]:
    """What made the vectors, in every file: two parts that disagree do not belong together."""
    if config.library == "mme5":
        settings = encoder_settings(config.adapter or config.model)
    else:
        settings = {"prompt_style": config.library, "pooling": config.library}
    made_by = {
        "model": folder.run.identities["model"],
        "adapter": folder.run.identities.get("adapter", ""),
        "prompt_style": config.prompt_style or settings["prompt_style"],
        "pooling": settings["pooling"],
        "dtype": config.dtype,
        "max_tokens": str(config.max_tokens or ""),
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
