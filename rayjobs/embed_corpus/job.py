"""Vectors of any corpus in Parquet: embed-corpus --config mme5 input=corpus/ model=run/model output=vectors/"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa

from mme5core.corpus.contents import Contents, number_contents
from mme5core.corpus.embedding_worker import load_encoder
from mme5core.corpus.index import Index
from mme5core.corpus.scan import ScanShard, scan
from mme5core.corpus.source_columns import SourceColumns
from mme5core.corpus.unembedded import EmbeddingKey
from mme5core.corpus.vector_log import REFUSED, VectorPlaces
from mme5core.corpus.vector_parts import WriteVectors, part_ranges
from mme5core.hub import pinned
from mme5core.model_folder import encoder_settings
from mme5core.parts import PartFiles
from mme5core.progress import Progress
from mme5core.readers.shards import labels
from mme5core.schemas import CONTENT_COLUMNS
from mme5core.vectors import Int8Calibration, VectorFormat, cut
from rayjobs.command.outcome import BAD_INPUT, RESUMABLE, Outcome
from rayjobs.embed_corpus.config import EmbedCorpusConfig
from rayjobs.embed_corpus.inputs import checked_format, corpus_shards, embed_folder, read_options
from rayjobs.embed_corpus.writing import PartWriter
from rayjobs.embedding import LoadEncoder, embed_contents, placement_for
from rayjobs.folder import JobFolder, nothing_kept
from rayjobs.folder.versions import versions
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.tasks import run_on_ray


def run(config: EmbedCorpusConfig, *, load: LoadEncoder = load_encoder) -> Outcome:
    """
    Args:
        load: makes the encoder of an actor.
    """
    # Workers may start hours apart; the hub's branch may move meanwhile.
    config = config.model_copy(update={"model": pinned(config.model)})
    shards = corpus_shards(config)
    vector_format = checked_format(config)
    with embed_folder(config, shards) as folder:
        finished = folder.open()
        if finished:
            return Outcome(finished["counters"], reason="already done")
        places_of_shards = labels(shards, config.input)
        with connected():
            placement = placement_for(config, config.num_workers, job="embed-corpus")
            options = read_options(config, columns=config.columns)
            key = EmbeddingKey(config.instruction)
            task = ScanShard(folder.work / "index", key, config.limit, options, key.content_columns)
            index = scan(shards, places_of_shards, task, job="embed-corpus", run=run_on_ray)
            if not index.num_usable:
                return _nothing_usable(folder, index, config.output)
            source = SourceColumns.of(index, config.columns, folder.work / "columns.json")
            contents = number_contents(index, folder.work)
            rows = folder.work / "rows"
            rows.mkdir(exist_ok=True)
            places = VectorPlaces(rows, vector_format.width, len(contents), _own_file(folder))
            write = WriteParts(folder, config, index, contents, places, vector_format, source)
            # Codes of 8 bits need the range of all vectors, so that no part is final before all are there.
            early = None if "int8" in vector_format.also else write.writer(None)
            steps = embed_contents(
                index,
                contents,
                places,
                config,
                read_options(config),
                placement,
                labels=places_of_shards,
                num_workers=config.num_workers,
                load=load,
                check_owner=folder.check_owner,
                refuses_unreachable=config.unreachable == "refuse",
            )
            if places.num_done < len(contents):
                _embed(steps, places, len(contents), early)
            return write.finish(early)


def _own_file(folder: JobFolder) -> Path:
    """Where this run keeps the places of vectors. A run that was replaced without noticing has a file of its own."""
    for earlier in folder.work.glob("done-*"):
        earlier.unlink(missing_ok=True)
    return folder.work / f"done-{folder.owner}"


def _embed(steps: Iterator[None], places: VectorPlaces, num_contents: int, writer: PartWriter | None) -> None:
    """Go through the steps of the embedding, and have parts written as they become final."""
    progress = Progress("embed-corpus", num_contents, "contents", done=places.num_done)
    with progress, writer or contextlib.nullcontext():
        for _ in steps:
            progress.update(places.num_done)
            if writer is not None:
                writer.write_finished()


def _nothing_usable(folder: JobFolder, index: Index, output: str) -> Outcome:
    """Write what there is to say of an input of which no row can be embedded."""
    detail = next(index.refused()).detail
    counts = folder.write_quarantine(index.refused())
    counters = folder.finish(unit="corpus rows", num_read=len(index), num_kept=0, refused=counts, pending=0)
    return nothing_kept(counters, output, detail=detail, code=BAD_INPUT, what="nothing in the input can be embedded")


class WriteParts:
    """The last step: parts, quarantine, manifest."""

    def __init__(
        self,
        folder: JobFolder,
        config: EmbedCorpusConfig,
        index: Index,
        contents: Contents,
        places: VectorPlaces,
        vector_format: VectorFormat,
        source: SourceColumns,
    ) -> None:
        self._folder, self._config, self._index, self._contents = folder, config, index, contents
        self._places, self._format, self._source = places, vector_format, source
        self._ranges = part_ranges(index, contents, config.rows_per_file)

    def writer(self, calibration: Int8Calibration | None) -> PartWriter:
        schema = pa.schema(
            [("id", pa.string()), *self._format.fields(), *CONTENT_COLUMNS, *self._source.fields()],
            _file_metadata(self._folder, self._config, self._format, calibration),
        )
        parts = self._folder.work / "parts"
        task = WriteVectors(
            self._index,
            self._contents,
            self._places.file,
            self._places.log,
            self._format,
            calibration,
            schema,
            self._source,
            parts,
        )
        files = PartFiles(parts, self._folder.path)
        digest = "" if calibration is None else calibration.digest()
        return PartWriter(
            files,
            self._ranges,
            self._contents,
            self._places,
            task,
            run_on_ray,
            may_publish=self._folder.check_owner,
            calibration=digest,
        )

    def finish(self, writer: PartWriter | None) -> Outcome:
        has_vector = (self._places.places >= 0) & (self._places.places < REFUSED)
        if writer is None:
            calibration = None
            if has_vector.any():
                batches = self._places.log.batches()
                calibration = Int8Calibration.fit(cut(vectors, self._format.dim) for vectors in batches)
            writer = self.writer(calibration)
        parts = writer.write_rest()
        refused = chain(self._index.refused(), *(part.refused() for part in parts))
        counts = self._folder.write_quarantine(refused)
        self._folder.take_parts({part.entry["name"]: part.file for part in parts})
        num_pending = sum(part.report["pending"] for part in parts)
        counters = self._folder.finish(
            unit="corpus rows",
            num_read=len(self._index),
            num_kept=sum(part.report["kept"] for part in parts),
            refused=counts,
            pending=num_pending,
            extra_counters={"distinct": int(has_vector.sum()), "cut": sum(part.report.get("cut", 0) for part in parts)},
            details={"dimension": self._format.dim},
            described=[part.entry for part in parts],
        )
        if num_pending:
            reason = (
                f"{num_pending:,} rows are pending, the first in {self._first_pending()}: their pictures or files "
                "could not be reached; start the same command again"
            )
            return Outcome(counters, RESUMABLE, reason)
        if not counters["kept"]:
            return nothing_kept(counters, self._config.output)
        return Outcome(counters)

    def _first_pending(self) -> str:
        """The shard of the first content that is not done."""
        content = self._places.prefix
        shard = next(n for n, start in enumerate(self._contents.starts[1:]) if content < start)
        return self._index.shards[shard].name


def _file_metadata(
    folder: JobFolder, config: EmbedCorpusConfig, vector_format: VectorFormat, calibration: Int8Calibration | None
) -> dict[str, str]:
    """What made the vectors, in every file: two parts that disagree do not belong together."""
    if config.library == "mme5":
        settings = encoder_settings(config.model, config.adapter)
        prompt_style, pooling = settings["prompt_style"], settings["pooling"]
        reading = {name: getattr(config, name) or settings.get(name) for name in ("picture_side", "positions")}
    else:
        reading = {}
        prompt_style = pooling = config.library
    made_by = {
        "model": folder.run.identities["model"],
        "adapter": folder.run.identities.get("adapter", ""),
        "prompt_style": config.prompt_style or prompt_style,
        "pooling": pooling,
        "dtype": config.dtype,
        "max_tokens": str(config.max_tokens or ""),
        "dim": str(vector_format.dim),
    }
    # Left out where the model decides: vectors of earlier versions have these identities.
    made_by |= {name: str(chosen) for name, chosen in reading.items() if chosen not in (None, "own")}
    metadata = {f"mme5.{name}": text for name, text in made_by.items() if text}
    metadata |= {
        "mme5.model_name": config.model,
        "mme5.model_identity": hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16],
        "mme5.fingerprint": folder.run.fingerprint,
        "mme5.normalized": "true",
        "mme5.versions": json.dumps(versions()),
    }
    if calibration is not None:
        metadata["mme5.int8_low"] = json.dumps(calibration.low.tolist())
        metadata["mme5.int8_step"] = json.dumps(calibration.step.tolist())
    return metadata
