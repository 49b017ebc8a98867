"""Judged hard negatives: judge input=samples/ neighbours=near/ judge.model=MODEL output=judged/"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from mme5core.errors import InputError, WorkFailed
from mme5core.hub import pinned
from mme5core.judge.judged_parts import JudgeBlock
from mme5core.judge.plan import JudgePlan, plan_judging
from mme5core.parts import Part, PartFiles
from mme5core.progress import Progress
from mme5core.sample_table import SampleTable
from mme5core.tasks import Item
from mme5core.types import Rejected
from rayjobs.command.outcome import BAD_INPUT, FAILED, Outcome
from rayjobs.folder import JobFolder, nothing_kept
from rayjobs.judge.actors import JudgeActor
from rayjobs.judge.config import JudgeConfig
from rayjobs.judge.inputs import judge_folder, neighbour_files, sample_files
from rayjobs.mapped_samples import map_once
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.resources import JUDGE, place_on, workers_per_node
from rayjobs.on_ray.streams import ActorPool, stream


def run(config: JudgeConfig) -> Outcome:
    # Workers may start hours apart; the hub's branch may move meanwhile.
    config = config.model_copy(update={"judge": config.judge.model_copy(update={"model": pinned(config.judge.model)})})
    samples, neighbours = sample_files(config), neighbour_files(config)
    with judge_folder(config, samples, neighbours) as folder:
        finished = folder.open()
        if finished:
            return Outcome(finished["counters"], reason="already done")
        file = folder.work / "samples.arrow"
        refused, num_read = map_once({"input": samples}, file, job="judge", num_negatives=0, limit=config.limit)
        table = SampleTable(file)
        plan = plan_judging(table.ids(), neighbours, folder.work / "candidates.int64")
        if not plan.starts[-1]:
            raise InputError(
                f"neighbours {config.neighbours!r}: "
                + (
                    f"none of its rows is of two samples of the input ({plan.num_unknown:,} name others)"
                    if plan.num_unknown
                    else "there is no row in it that names two samples: mine has kept nothing"
                )
            )
        parts = _write_parts(folder, config, plan, len(table))
        return _finish(folder, config, parts, refused, num_read, plan)


def _write_parts(folder: JobFolder, config: JudgeConfig, plan: JudgePlan, num_samples: int) -> Sequence[Part]:
    """The parts in their order; those of an earlier run are taken as they are."""
    items: list[Item] = [
        {"part": n, "start": start, "stop": min(start + config.samples_per_file, num_samples), "made_from": ""}
        for n, start in enumerate(range(0, num_samples, config.samples_per_file))
    ]
    files = PartFiles(folder.work / "parts", folder.path)
    parts = files.written(items)
    block = JudgeBlock(
        folder.work / "samples.arrow",
        plan,
        config.select,
        folder.work / "parts",
        config.seed,
        config.judge.max_batch_rows,
        config.judge.max_batch_tokens,
    )
    missing = [item for item in items if item["part"] not in parts]
    done = sum(part.report["stop"] - part.report["start"] for part in parts.values())
    with connected(), Progress("judge", num_samples, "samples", done=done) as progress:
        for part in files.take(_judged(config, block, missing)):
            folder.check_owner()
            parts[part.number] = part
            done += part.report["stop"] - part.report["start"]
            progress.update(done)
    return [parts[item["part"]] for item in items]


def _judged(config: JudgeConfig, block: JudgeBlock, items: Sequence[Item]) -> Iterator[Item]:
    """The reports of a pool of judges on some items.

    Raises:
        InputError: the judge cannot be loaded.
        WorkFailed: a block cannot be judged.
    """
    if not items:
        return
    settings, num_workers = config.judge, min(config.num_workers, len(items))
    placement = place_on(
        JUDGE, num_workers, device=settings.device, gpus_per_worker=settings.gpus_per_worker, job="judge"
    )
    arguments = (block, settings, placement.uses_gpu, workers_per_node(num_workers))
    pool = ActorPool(JudgeActor, arguments, num_workers, placement)
    for row in stream([{"item": json.dumps(item)} for item in items], pool, num_tasks=len(items)):
        if row["unloadable"]:
            raise InputError(row["unloadable"])
        if row["failure"]:
            raise WorkFailed(row["failure"])
        yield json.loads(row["report"])


def _remarks(config: JudgeConfig, totals: Counter[str]) -> Iterator[str]:
    wrong, fewer = totals["wrong_positives"], totals["fewer"]
    if wrong and config.select.min_positive_score is None:
        yield f"{wrong:,} positives score below 0.5; select.min_positive_score=0.5 refuses their samples"
    if fewer and config.select.fill == "fewer":
        yield (
            f"{fewer:,} samples have fewer than select.count={config.select.count} negatives; train refuses those with "
            "fewer than its num_negatives"
        )


def _finish(
    folder: JobFolder,
    config: JudgeConfig,
    parts: Sequence[Part],
    refused: Sequence[Rejected],
    num_read: int,
    plan: JudgePlan,
) -> Outcome:
    """Parts, quarantine, manifest."""
    folder.check_owner()
    totals = Counter[str]()
    for part in parts:
        totals.update({name: part.report[name] for name in ("kept", "pairs", "wrong_positives", "fewer", "unshown")})
    for line in _remarks(config, totals):
        print(f"judge: {line}", file=sys.stderr)
    counts = folder.write_quarantine([*refused, *(rejected for part in parts for rejected in part.refused())])
    folder.take_parts({part.entry["name"]: part.file for part in parts})
    kept = totals.pop("kept")
    counters = folder.finish(
        unit="queries",
        num_read=num_read,
        num_kept=kept,
        refused=counts,
        pending=0,
        extra_counters={**totals, "unknown_neighbours": plan.num_unknown},
        described=[part.entry for part in parts],
    )
    if not kept:
        return nothing_kept(counters, config.output, code=FAILED if parts else BAD_INPUT)
    return Outcome(counters)
