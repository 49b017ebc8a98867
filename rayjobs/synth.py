"""Training samples from pictures: synth --config mme5 input=laion/ output=samples/ teacher.base_url=URL"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.errors import first_line
from mme5core.readers import input_files, input_identity
from mme5core.readers.img2dataset import read_picture
from mme5core.schemas import HOLDOUT, NEIGHBOURS, SAMPLES
from mme5core.storage import locate
from mme5core.synthesis.answer import parse_answer
from mme5core.synthesis.plan import PlannedSample, PlanSettings, plan_image
from mme5core.synthesis.prompts import answer_schema, build_prompt, prompt_hash
from mme5core.synthesis.teacher import (
    BudgetSpent,
    Teacher,
    TeacherMisconfigured,
    TeacherRejected,
    TeacherUnavailable,
)
from mme5core.types import Content, Rejected, Sample
from rayjobs import cli, worklog
from rayjobs.cluster import actor_cpus, connected, rows_to_tables
from rayjobs.config import ConfigError, SynthConfig, fingerprint, row_keys
from rayjobs.output import JobFolder, Run
from rayjobs.progress import Progress
from rayjobs.scan import Index, ScanShard, picture_key, scan, shards_of

ROWS_PER_FILE = 20_000
PLAN_ROWS_PER_BATCH = 64
FLUSH_EVERY_S = 1.0
UNREACHABLE_IN_A_ROW = 3  # then the worker leaves the rest for the next run, instead of waiting through every row
KEPT, REFUSED, PENDING = "kept", "refused", "pending"

# A finished call. `key` is the planned sample's id; `sample` is set where it was kept.
WORK = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("calls", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("sample", pa.struct(list(SAMPLES))),
    ]
)
PLAN = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("modality_combination", pa.string()),
        ("language", pa.string()),
        ("query_image", pa.string()),
        ("positive_image", pa.string()),
        ("negative_images", pa.list_(pa.string())),
        ("pictures", pa.list_(pa.struct([("path", pa.string()), ("offset", pa.int64()), ("num_bytes", pa.int64())]))),
    ]
)


def run(config: SynthConfig) -> cli.Outcome:
    shards = shards_of(config.input, suffixes=(".tar",))
    settings = plan_settings(config)
    if not config.teacher.base_url or not config.teacher.model:
        missing = "base_url" if not config.teacher.base_url else "model"
        raise ConfigError(f"'teacher.{missing}' is required: an OpenAI-compatible endpoint and a model's name there")
    if config.budget.usd is not None and (config.prices.prompt is None or config.prices.completion is None):
        raise ConfigError("'budget.usd' needs 'prices.prompt' and 'prices.completion' (USD per million tokens)")
    files = input_files(shards)
    identities = {"input": input_identity(files)} | {
        name: input_identity(input_files(shards_of([path], suffixes=(".parquet",))))
        for name, path in (("neighbours", config.neighbours), ("holdout", config.holdout))
        if path
    }
    folder = JobFolder(
        config.output,
        Run("synth", config.model_dump(), fingerprint(config, **identities), row_keys(config), identities, files),
    )
    finished = folder.open()
    if finished:
        return cli.Outcome(finished["counters"], reason="already done")
    with connected() as ray:
        index = scan(ray, shards, ScanShard(folder.work / "index", picture_key, config.limit), label="synth")
        plans, refused = plan_corpus(index, settings)
        rows = folder.work / "rows"
        rows.mkdir(exist_ok=True)
        stop = _ask_all(ray, config, index, plans, worklog.WorkLog(rows, WORK), rows)
    return _finish(folder, config, plans, refused, stop, worklog.WorkLog(rows, WORK))


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the asking ended before every planned sample had its answer."""

    code: int
    reason: str


def plan_corpus(index: Index, settings: PlanSettings) -> tuple[list[PlannedSample], list[Rejected]]:
    """The samples of every usable picture, and every planned sample that a bad picture takes away.

    A picture that was seen before (same bytes) is refused as `duplicate_image`.
    """
    usable = index.usable()
    first: dict[bytes, str] = {}
    refused = list(index.refused())
    for image_id, key in zip(usable["id"].to_pylist(), usable["key"].to_pylist(), strict=True):
        if first.setdefault(key, image_id) != image_id:
            refused.append(Rejected(image_id, "duplicate_image", f"the same bytes as {first[key]}"))
    good = set(first.values())
    settings = replace(
        settings, neighbours={q: [c for c in found if c in good] for q, found in settings.neighbours.items()}
    )
    plans = [plan for image_id in first.values() for plan in plan_image(image_id, settings)]
    per_sample = [
        Rejected(f"{rejected.id}-{n}", rejected.reason, rejected.detail)
        for rejected in refused
        for n in range(settings.samples_per_image)
    ]
    return plans, per_sample


def plan_settings(config: SynthConfig) -> PlanSettings:
    neighbours: dict[str, list[str]] = defaultdict(list)
    if config.neighbours:
        for row in _read_columns(config.neighbours, NEIGHBOURS, "neighbours").sort_by("rank").to_pylist():
            neighbours[row["query_id"]].append(row["candidate_id"])
    holdout: dict[str, set[str]] = defaultdict(set)
    if config.holdout:
        for row in _read_columns(config.holdout, HOLDOUT, "holdout").to_pylist():
            holdout[row["image_id"]].add(row["language"])
    try:
        return PlanSettings(
            seed=config.seed,
            samples_per_image=config.samples_per_image,
            tasks=config.tasks,
            combinations=config.combinations,
            languages=config.languages,
            num_negatives=config.num_negatives,
            neighbours=neighbours,
            holdout={image_id: frozenset(languages) for image_id, languages in holdout.items()},
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _read_columns(path: str, schema: pa.Schema, key: str) -> pa.Table:
    """The columns of a schema from a Parquet file or folder."""
    tables = []
    for file in shards_of([path], suffixes=(".parquet",)):
        try:
            found = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{key} {str(file)!r} cannot be read ({first_line(error)})") from None
        for name in schema.names:
            if name not in found:
                raise ConfigError(f"{key} {str(file)!r} has no column {name!r}; it has {', '.join(found)}")
        tables.append(pq.read_table(file, columns=schema.names).select(schema.names).cast(schema))
    return pa.concat_tables(tables).combine_chunks()


def _ask_all(
    ray: Any, config: SynthConfig, index: Index, plans: list[PlannedSample], done: worklog.WorkLog, rows: Path
) -> Stop | None:
    """Ask for every planned sample that has no answer yet; answers go to `rows` as they come."""
    answered = set(done.keys.filter(pc.not_equal(done.column("status"), PENDING)).to_pylist())
    missing = [plan for plan in plans if plan.id not in answered]
    if not missing:
        return None
    ledger = None
    if config.budget.calls is not None or config.budget.usd is not None:
        ledger = (
            ray.remote(Ledger)
            .options(num_cpus=0)
            .remote(config.budget.model_dump(), config.prices.model_dump(), *_spent(done))
        )
    table = pa.Table.from_pylist(list(_with_pictures(missing, index)), PLAN)
    num_blocks = max(config.num_workers, -(-len(missing) // PLAN_ROWS_PER_BATCH))
    key = os.environ.get("OPENAI_API_KEY")
    answers = ray.data.from_arrow(table, override_num_blocks=num_blocks).map_batches(
        AskTeacher,
        fn_constructor_args=(config.teacher.model_dump(), config.num_negatives, str(rows), ledger, key),
        batch_size=PLAN_ROWS_PER_BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.num_workers),
        num_cpus=actor_cpus(ray, config.num_workers, 0.5),
    )
    counts: Counter[str] = Counter()
    stop: Stop | None = None
    with Progress("synth", len(plans), "samples", done=len(plans) - len(missing)) as progress:
        for batch in rows_to_tables(answers):
            for row in batch.to_pylist():
                counts[row["status"]] += row["count"]
                if row["stop_code"]:
                    stop = stop or Stop(row["stop_code"], row["stop_reason"])
            num_done = len(answered) + counts[KEPT] + counts[REFUSED]
            progress.update(num_done, f"{counts[REFUSED]:,} refused, {counts[PENDING]:,} pending")
            if stop and stop.code != cli.RESUMABLE:
                break
    return stop


def _spent(done: worklog.WorkLog) -> tuple[int, int, int]:
    """Calls and tokens that earlier runs of this folder paid for."""
    calls, prompt_tokens, completion_tokens = (
        int(pc.sum(done.column(name)).as_py() or 0) for name in ("calls", "prompt_tokens", "completion_tokens")
    )
    return calls, prompt_tokens, completion_tokens


def _with_pictures(plans: list[PlannedSample], index: Index) -> Iterator[dict[str, Any]]:
    usable = index.usable()
    place = {image_id: number for number, image_id in enumerate(usable["id"].to_pylist())}
    shards, offsets, sizes = (usable[name].to_pylist() for name in ("shard", "offset", "num_bytes"))
    for plan in plans:
        found = [place[image_id] for image_id in plan.image_ids]
        yield {
            "id": plan.id,
            "task": plan.task,
            "modality_combination": plan.modality_combination,
            "language": plan.language,
            "query_image": plan.query_image,
            "positive_image": plan.positive_image,
            "negative_images": list(plan.negative_images),
            "pictures": [
                {"path": str(index.shards[shards[n]]), "offset": offsets[n], "num_bytes": sizes[n]} for n in found
            ],
        }


class Ledger:
    """What may still be spent, over all workers: every call asks here first."""

    def __init__(
        self, budget: dict[str, Any], prices: dict[str, Any], calls: int, prompt_tokens: int, completion_tokens: int
    ) -> None:
        self.budget, self.prices = budget, prices
        self.calls = calls
        self.usd = self._cost(prompt_tokens, completion_tokens)

    def allow_call(self) -> bool:
        if self.budget["calls"] is not None and self.calls >= self.budget["calls"]:
            return False
        if self.budget["usd"] is not None and self.usd >= self.budget["usd"]:
            return False
        self.calls += 1
        return True

    def spend(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.usd += self._cost(prompt_tokens, completion_tokens)

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        prompt, completion = self.prices["prompt"] or 0.0, self.prices["completion"] or 0.0
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6


class AskTeacher:
    """The actor: planned samples in, finished rows into the work folder, counts out."""

    def __init__(
        self, teacher: dict[str, Any], num_negatives: int, rows: str, ledger: Any, api_key: str | None
    ) -> None:
        self._settings, self._num_negatives, self._rows = teacher, num_negatives, Path(rows)
        self._ledger, self._api_key = ledger, api_key
        self._teacher: Teacher | None = None
        self._slots: asyncio.Semaphore | None = None
        self._finished: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        self._num_unreachable = 0
        self._stop: Stop | None = None

    async def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        if self._teacher is None or self._slots is None:
            # Made here: they belong to the actor's event loop, which does not run yet in __init__.
            settings = dict(self._settings)
            self._slots = asyncio.Semaphore(settings.pop("concurrency"))
            allow_call = self._allow_call if self._ledger is not None else None
            self._teacher = Teacher(**settings, api_key=self._api_key, allow_call=allow_call)
        rows = await asyncio.gather(*(self._one(record) for record in batch.to_pylist()))
        try:
            self._flush()
        except OSError as error:
            self._stop = Stop(cli.FAILED, f"cannot write to {self._rows}: {error.strerror}")
        counts = Counter(row["status"] for row in rows)
        stop = self._stop or Stop(0, "")
        return {
            "status": list(counts),
            "count": list(counts.values()),
            "stop_code": [stop.code] * len(counts),
            "stop_reason": [stop.reason] * len(counts),
        }

    async def _one(self, record: dict[str, Any]) -> dict[str, Any]:
        assert self._slots is not None
        async with self._slots:
            row = {"key": record["id"], "status": PENDING, "calls": 0, "prompt_tokens": 0, "completion_tokens": 0}
            if self._stop is None:
                try:
                    row |= await self._ask(record)
                except OSError as error:
                    where = error.filename or record["pictures"]
                    self._stop = Stop(cli.FAILED, f"cannot read {where}: {error.strerror}")
            if row["status"] != PENDING or row["calls"]:
                self._finished.append(row)
            if time.monotonic() - self._flushed > FLUSH_EVERY_S and self._stop is None:
                try:
                    self._flush()
                except OSError as error:
                    self._stop = Stop(cli.FAILED, f"cannot write to {self._rows}: {error.strerror}")
            return row

    async def _ask(self, record: dict[str, Any]) -> dict[str, Any]:
        assert self._teacher is not None
        plan = _plan_of(record)
        images = {
            image_id: read_picture(locate(place["path"]), place["offset"], place["num_bytes"])
            for image_id, place in zip(plan.image_ids, record["pictures"], strict=True)
        }
        system, user = build_prompt(plan, num_negatives=self._num_negatives)
        try:
            answer = await self._teacher.ask(system, user, list(images.values()), answer_schema(plan))
        except BudgetSpent as error:
            self._stop = Stop(cli.RESUMABLE, "the budget is spent; raise budget.calls or budget.usd to go on")
            return {"calls": error.calls}
        except TeacherMisconfigured as error:
            self._stop = Stop(cli.BAD_INPUT, str(error))
            return {}
        except TeacherRejected as error:
            return {"status": REFUSED, "reason": "teacher_rejected", "detail": str(error), "calls": error.calls}
        except TeacherUnavailable as error:
            self._num_unreachable = self._num_unreachable + 1 if error.unreachable else 0
            if self._num_unreachable >= UNREACHABLE_IN_A_ROW:
                self._stop = Stop(cli.RESUMABLE, f"{error} at {self._settings['base_url']}; run again when it is there")
            return {"reason": "teacher_unavailable", "detail": str(error), "calls": error.calls}
        self._num_unreachable = 0
        if self._ledger is not None:
            await self._ledger.spend.remote(answer.prompt_tokens, answer.completion_tokens)
        usage = {
            "calls": answer.calls,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }
        sample = parse_answer(answer.text, answer.finish_reason, plan, images, num_negatives=self._num_negatives)
        if isinstance(sample, Rejected):
            return usage | {"status": REFUSED, "reason": sample.reason, "detail": sample.detail}
        return usage | {
            "status": KEPT,
            "sample": _sample_row(sample, plan)
            | {
                "raw": answer.text,
                "prompt_sha256": prompt_hash(system, user),
                "teacher": answer.model,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
            },
        }

    async def _allow_call(self) -> bool:
        return bool(await self._ledger.allow_call.remote())

    def _flush(self) -> None:
        if self._finished:
            worklog.append(self._rows, pa.Table.from_pylist(self._finished, WORK))
        self._finished = []
        self._flushed = time.monotonic()


def _plan_of(record: dict[str, Any]) -> PlannedSample:
    return PlannedSample(
        record["id"],
        record["task"],
        record["modality_combination"],
        record["language"],
        record["query_image"],
        record["positive_image"],
        tuple(record["negative_images"]),
    )


def _sample_row(sample: Sample, plan: PlannedSample) -> dict[str, Any]:
    def row(content: Content, image_id: str | None) -> dict[str, Any]:
        image = {"bytes": content.image, "path": image_id} if content.image is not None else None
        return {"text": content.text, "image": image}

    negative_images = plan.negative_images or (None,) * len(sample.negatives)
    return {
        "id": sample.id,
        "task": plan.task,
        "modality_combination": plan.modality_combination,
        "language": plan.language,
        "instruction": sample.instruction,
        "document_instruction": sample.document_instruction,
        "query": row(sample.query, plan.query_image),
        "positive": row(sample.positive, plan.positive_image),
        "negatives": [row(c, i) for c, i in zip(sample.negatives, negative_images, strict=True)],
        "image_ids": list(plan.image_ids),
    }


def _finish(
    folder: JobFolder,
    config: SynthConfig,
    plans: list[PlannedSample],
    refused: list[Rejected],
    stop: Stop | None,
    done: worklog.WorkLog,
) -> cli.Outcome:
    """Write what there is as parts, quarantine and manifest; what has no answer is pending."""
    ids = sorted(plan.id for plan in plans)
    num_read = len(ids) + len(refused)
    places = done.find(pa.array(ids), among=np.asarray(done.column("status")) != PENDING)
    answered = places[places >= 0]
    is_kept = np.asarray(done.column("status"))[answered] == KEPT
    samples = (pa.Table.from_struct_array(table["sample"]) for table in done.take(answered[is_kept]))
    num_kept = folder.write_parts(samples, SAMPLES, rows_per_file=ROWS_PER_FILE)
    for table in done.take(answered[~is_kept]):
        rows = table.select(["key", "reason", "detail"]).to_pylist()
        refused.extend(Rejected(row["key"], row["reason"], row["detail"] or "") for row in rows)
    calls, prompt_tokens, completion_tokens = _spent(done)
    extra: dict[str, float] = {"calls": calls, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    if config.prices.prompt is not None and config.prices.completion is not None:
        extra["usd"] = Ledger({}, config.prices.model_dump(), 0, prompt_tokens, completion_tokens).usd
    pending = len(ids) - len(answered)
    counters = folder.finish(
        unit="planned samples",
        num_read=num_read,
        num_kept=num_kept,
        refused=folder.write_quarantine(refused),
        pending=pending,
        extra_counters=extra,
    )
    if pending:
        stop = stop or Stop(cli.RESUMABLE, f"{pending} samples have no answer yet; run the same command again")
        return cli.Outcome(counters, stop.code, stop.reason)
    return cli.Outcome(counters)


def main() -> None:
    cli.main("synth", {"": run})


if __name__ == "__main__":
    main()
