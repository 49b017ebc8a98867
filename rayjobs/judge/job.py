"""Judged hard negatives: judge input=samples/ neighbours=near/ judge.model=MODEL output=judged/"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from mme5core.errors import InputError
from mme5core.hub import pinned
from mme5core.judge.judged_parts import JudgeBlock
from mme5core.judge.plan import JudgePlan, plan_judging
from mme5core.parts import Part
from mme5core.sample_table import SampleTable
from mme5core.types import Rejected
from rayjobs.command.outcome import BAD_INPUT, FAILED, Outcome
from rayjobs.folder import JobFolder, nothing_kept
from rayjobs.judge.config import JudgeConfig
from rayjobs.judge.inputs import judge_folder, neighbour_files, sample_files
from rayjobs.mapped_samples import map_once
from rayjobs.model_parts import write_parts
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.resources import JUDGE


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
        block = JudgeBlock(file, plan, config.select, folder.work / "parts", config.seed, config.judge)
        with connected():
            parts = write_parts(
                block,
                folder.work / "parts",
                folder.path,
                num_rows=len(table),
                rows_per_file=config.samples_per_file,
                num_workers=config.num_workers,
                stage=JUDGE,
                job="judge",
                unit="samples",
                check_owner=folder.check_owner,
            )
        return _finish(folder, config, parts, refused, num_read, plan)


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
