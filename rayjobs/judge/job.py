"""Judged hard negatives: judge input=samples/ neighbours=near/ judge.model=MODEL output=judged/"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mme5core.asking.patience import Stop
from mme5core.corpus.content_table import read_contents
from mme5core.errors import InputError
from mme5core.hub import pinned
from mme5core.judge.candidates import JudgeTables, ToJudge
from mme5core.judge.judged_parts import COUNTS, JudgeBlock
from mme5core.judge.judged_rows import JudgedRows
from mme5core.judge.plan import named_candidates, plan_judging
from mme5core.parts import Part
from mme5core.readers import ReadOptions
from mme5core.readers.shards import labels
from mme5core.sample_readers.files import sample_files
from mme5core.sample_table import SampleTable
from mme5core.storage import AnyPath
from mme5core.types import Rejected
from rayjobs.command.outcome import BAD_INPUT, FAILED, RESUMABLE, Outcome
from rayjobs.folder import JobFolder, nothing_kept
from rayjobs.judge.config import JudgeConfig
from rayjobs.judge.inputs import candidate_shards, judge_folder, neighbour_files
from rayjobs.judge.served import Judged, ask_judge
from rayjobs.mapped_samples import map_once
from rayjobs.model_parts import write_parts
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.resources import JUDGE
from rayjobs.on_ray.tasks import run_on_ray


def run(config: JudgeConfig) -> Outcome:
    if not config.judge.base_url:
        # Workers may start hours apart; the hub's branch may move meanwhile.
        pinned_judge = config.judge.model_copy(update={"model": pinned(config.judge.model)})
        config = config.model_copy(update={"judge": pinned_judge})
    samples, neighbours, candidates = sample_files(config.input), neighbour_files(config), candidate_shards(config)
    with judge_folder(config, samples, neighbours, candidates) as folder:
        finished = folder.open()
        if finished:
            return Outcome(finished["counters"], reason="already done")
        file = folder.work / "samples.arrow"
        refused, num_read = map_once(
            {"input": samples}, file, job="judge", num_negatives=0, limit=config.limit, images=config.images
        )
        with contextlib.ExitStack() as cluster:
            if candidates:
                cluster.enter_context(connected())
            to_judge = _plan(folder, config, file, neighbours, candidates)
            if not candidates:  # bad neighbours are refused without a cluster
                cluster.enter_context(connected())
            rows = JudgedRows(config.select, config.seed)
            if config.judge.base_url:
                judged = ask_judge(folder, config, to_judge, rows)
            else:
                judged = Judged(_judge_here(folder, config, to_judge, rows))
            return _finish(folder, config, judged, refused, num_read, to_judge)


def _plan(
    folder: JobFolder, config: JudgeConfig, file: Path, neighbours: list[AnyPath], shards: list[AnyPath]
) -> ToJudge:
    """
    Raises:
        InputError: no neighbour is of a sample and a candidate.
    """
    files = None
    if shards:
        hosts = None if config.allow_hosts is None else tuple(config.allow_hosts)
        table, lost, _ = read_contents(
            shards,
            labels(shards, config.candidates or ()),
            folder.work / "corpus",
            options=ReadOptions("target", config.pictures, allow_hosts=hosts),
            wanted=named_candidates(SampleTable(file).ids(), neighbours),
            run=run_on_ray,
        )
        files = table.files
        if lost:
            first = f"the first {lost[0].id} ({lost[0].reason})"
            print(f"judge: {len(lost):,} candidates cannot be read, {first}", file=sys.stderr)
    tables = JudgeTables(file, files)
    plan = plan_judging(
        tables.samples.ids(),
        neighbours,
        folder.work / "candidates.int64",
        tables.candidate_ids(),
        positive_keys=tables.samples.positive_keys,
        candidate_keys=tables.candidate_keys(),
    )
    if not plan.starts[-1]:
        pair = "a sample and a candidate" if shards else "two samples of the input"
        raise InputError(
            f"neighbours {config.neighbours!r}: "
            + (
                f"none of its rows is of {pair} ({plan.num_unknown:,} name others)"
                if plan.num_unknown
                else "there is no row in it that names two samples: mine has kept nothing"
            )
        )
    return ToJudge(file, files, plan, config.samples_per_file)


def _judge_here(folder: JobFolder, config: JudgeConfig, to_judge: ToJudge, rows: JudgedRows) -> Sequence[Part]:
    return write_parts(
        JudgeBlock(to_judge, rows, folder.work / "parts", config.judge),
        folder.work / "parts",
        folder.path,
        num_rows=len(to_judge.plan.starts) - 1,
        rows_per_file=config.samples_per_file,
        num_workers=config.num_workers,
        stage=JUDGE,
        job="judge",
        unit="samples",
        check_owner=folder.check_owner,
    )


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
    judged: Judged,
    refused: Sequence[Rejected],
    num_read: int,
    to_judge: ToJudge,
) -> Outcome:
    """Parts, quarantine, manifest."""
    folder.check_owner()
    totals = Counter[str]()
    for part in judged.parts:
        totals.update({name: part.report[name] for name in COUNTS})
    num_pending = sum(part.report.get("pending", 0) for part in judged.parts)
    for line in _remarks(config, totals):
        print(f"judge: {line}", file=sys.stderr)
    counts = folder.write_quarantine([*refused, *(rejected for part in judged.parts for rejected in part.refused())])
    folder.take_parts({part.entry["name"]: part.file for part in judged.parts})
    kept = totals.pop("kept")
    counters = folder.finish(
        unit="queries",
        num_read=num_read,
        num_kept=kept,
        refused=counts,
        pending=num_pending,
        extra_counters={**totals, **judged.costs, "unknown_neighbours": to_judge.plan.num_unknown},
        described=[part.entry for part in judged.parts],
    )
    if num_pending:
        stop = judged.stop or Stop(RESUMABLE, f"{num_pending:,} samples wait for answers; run the same again")
        return Outcome(counters, stop.code, stop.reason)
    if not kept:
        return nothing_kept(counters, config.output, code=FAILED if judged.parts else BAD_INPUT)
    return Outcome(counters)
