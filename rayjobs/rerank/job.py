"""Reordered candidates: rerank input=queries/ candidates=corpus/ neighbours=near/ model=MODEL output=reranked/"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mme5core.corpus.content_table import ContentTable, read_contents, repeated_ids
from mme5core.errors import InputError
from mme5core.hub import pinned
from mme5core.judge.plan import JudgePlan, named_candidates, plan_judging
from mme5core.parts import Part
from mme5core.reranker.reranked_parts import RerankBlock
from mme5core.types import Rejected
from rayjobs.command.outcome import BAD_INPUT, FAILED, Outcome
from rayjobs.folder import JobFolder, nothing_kept
from rayjobs.model_parts import write_parts
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.resources import RERANK
from rayjobs.on_ray.tasks import run_on_ray
from rayjobs.rerank.config import RerankConfig
from rayjobs.rerank.inputs import Side, neighbour_files, rerank_folder, side_of


def run(config: RerankConfig) -> Outcome:
    # Workers may start hours apart; the hub's branch may move meanwhile.
    config = config.model_copy(update={"model": pinned(config.model)})
    sides = side_of(config, "query"), side_of(config, "target")
    neighbours = neighbour_files(config)
    with rerank_folder(config, *sides, neighbours) as folder, connected():
        finished = folder.open()
        if finished:
            return Outcome(finished["counters"], reason="already done")
        queries, refused, num_read = _read(folder, sides[0], "queries", limit=config.limit)
        wanted = named_candidates(queries.ids(), neighbours)
        candidates, lost, _ = _read(folder, sides[1], "candidates", wanted=wanted)
        if lost:
            print(
                f"rerank: {len(lost):,} candidates cannot be read, the first {lost[0].id} ({lost[0].reason})",
                file=sys.stderr,
            )
        plan = plan_judging(queries.ids(), neighbours, folder.work / "candidates.int64", candidates.ids())
        if not plan.starts[-1]:
            raise InputError(
                f"neighbours {config.neighbours!r}: none of its rows is of a query of the input and a candidate "
                f"({plan.num_unknown:,} name others)"
            )
        block = RerankBlock(
            queries.files,
            candidates.files,
            plan,
            config,
            frozenset(np.flatnonzero(repeated_ids(queries.ids())).tolist()),
            config.method,
            config.top_k,
            config.instruction,
            folder.work / "parts",
        )
        parts = write_parts(
            block,
            folder.work / "parts",
            folder.path,
            num_rows=len(queries),
            rows_per_file=config.queries_per_file,
            num_workers=config.num_workers,
            stage=RERANK,
            job="rerank",
            unit="queries",
            check_owner=folder.check_owner,
        )
        return _finish(folder, config, parts, refused, num_read, plan)


def _read(folder: JobFolder, side: Side, name: str, **which: Any) -> tuple[ContentTable, list[Rejected], int]:
    return read_contents(side.shards, side.labels, folder.work / name, options=side.options, run=run_on_ray, **which)


def _finish(
    folder: JobFolder,
    config: RerankConfig,
    parts: Sequence[Part],
    refused: Sequence[Rejected],
    num_read: int,
    plan: JudgePlan,
) -> Outcome:
    """Parts, quarantine, manifest."""
    folder.check_owner()
    totals = Counter[str]()
    for part in parts:
        totals.update({name: part.report[name] for name in ("kept", "pairs", "unshown")})
    if totals["unshown"]:
        print(
            f"rerank: {totals['unshown']:,} candidates cannot be shown to the model; they follow those that can",
            file=sys.stderr,
        )
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
