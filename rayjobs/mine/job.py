"""Nearest candidates between two sets of vectors: mine queries=vectors/ candidates=vectors/ output=near/ top_k=50"""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mme5core.errors import InputError
from mme5core.mining.approximate import ApproximateIndex, default_factory
from mme5core.mining.candidate_index import CandidateIndex
from mme5core.mining.neighbour_parts import MineBlock
from mme5core.mining.vector_files import check_distinct_ids
from mme5core.parts import Part, PartFiles
from mme5core.progress import Progress
from mme5core.tasks import Item
from rayjobs.command.outcome import FAILED, Outcome
from rayjobs.folder import JobFolder, nothing_kept
from rayjobs.mine.config import MineConfig
from rayjobs.mine.inputs import MineInputs, mine_folder, mine_inputs
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.resources import MINE, Placement, place_for, workers_per_node
from rayjobs.on_ray.tasks import run_on_ray

MEASURED_QUERIES = 1000
"""Whose exact neighbours are found too, to know the recall of an approximate search."""


def run(config: MineConfig) -> Outcome:
    inputs = mine_inputs(config)
    with mine_folder(config, inputs) as folder:
        finished = folder.open()
        if finished:
            return Outcome(finished["counters"], reason="already done")
        # A random name: tasks of a killed run may still read theirs.
        for pattern in ("candidates-*", "ids-*"):
            for earlier in folder.work.glob(pattern):
                shutil.rmtree(earlier, ignore_errors=True)
        index = CandidateIndex.write(inputs.candidates, folder.work / f"candidates-{uuid.uuid4().hex}")
        for rule in inputs.rules:
            if rule.min_rank > len(index.order) - index.num_repeated:
                few = f"{len(index.order) - index.num_repeated:,} candidates of different contents"
                raise InputError(f"rule {rule.name!r} begins at rank {rule.min_rank}, and there are only {few}")
            if rule.modality != "any":
                index.check_modalities(rule.name)
        num_queries = inputs.num_queries(config.limit)
        check_distinct_ids(inputs.queries, num_queries, folder.work)
        approximate = _approximate(config, inputs, folder)
        with connected():
            placement = place_for(MINE, config.num_workers, use_gpu=config.use_gpu, job="mine")
            task = _task(folder, config, inputs, index, placement, approximate)
            parts = _write_parts(folder, config, inputs, task, placement)
            recall = None if approximate is None else _recall(folder, task, parts, placement)
            return _finish(folder, config, parts, num_queries, index, recall)


def _approximate(config: MineConfig, inputs: MineInputs, folder: JobFolder) -> ApproximateIndex | None:
    if config.search == "exact":
        return None
    print("mine: building the index", file=sys.stderr)
    return ApproximateIndex.write(
        inputs.candidates,
        folder.work / f"candidates-{uuid.uuid4().hex}",
        factory=config.faiss.index or default_factory(len(inputs.candidates)),
        num_probed=config.faiss.num_probed,
        shortlist=config.faiss.shortlist,
        seed=config.seed,
    )


def _task(
    folder: JobFolder,
    config: MineConfig,
    inputs: MineInputs,
    index: CandidateIndex,
    placement: Placement,
    approximate: ApproximateIndex | None,
) -> MineBlock:
    return MineBlock(
        inputs.queries,
        inputs.candidates,
        index,
        inputs.rules,
        config.own_picture,
        config.pool_column,
        tuple(inputs.positives),
        folder.work / "parts",
        None if placement.uses_gpu else workers_per_node(config.num_workers),
        approximate,
    )


def _recall(folder: JobFolder, task: MineBlock, parts: Sequence[Part], placement: Placement) -> float | None:
    """Which share of the exact neighbours of the first queries the approximate search has found."""
    (item,) = [part.report for part in parts if part.number == 0]
    checked = folder.work / f"ids-{uuid.uuid4().hex}"
    checked.mkdir()
    stop = min(item["stop"], MEASURED_QUERIES)
    exact = replace(task, approximate=None, folder=checked)
    (report,) = run_on_ray(exact, [{"part": 0, "start": 0, "stop": stop}], placement=placement)
    names = ["query_id", "candidate_id", "source"]
    rows = pq.read_table(checked / report["file"]["name"], columns=names)
    expected = set(zip(*(rows[name].to_pylist() for name in names), strict=True))
    ids = pa.array({query for query, _, _ in expected}, pa.string())
    rows = pq.read_table(next(part.file for part in parts if part.number == 0), columns=names)
    rows = rows.filter(pc.is_in(rows["query_id"], value_set=ids))
    own = set(zip(*(rows[name].to_pylist() for name in names), strict=True))
    if not expected:
        return None
    recall = len(own & expected) / len(expected)
    print(f"mine: {recall:.4f} of the exact neighbours of {stop:,} queries are among those of FAISS", file=sys.stderr)
    return recall


def _write_parts(
    folder: JobFolder, config: MineConfig, inputs: MineInputs, task: MineBlock, placement: Placement
) -> Sequence[Part]:
    """The parts in their order; those of an earlier run are taken as they are."""
    num_queries = inputs.num_queries(config.limit)
    starts = range(0, num_queries, config.queries_per_file)
    items: list[Item] = [
        {"part": n, "start": start, "stop": min(start + config.queries_per_file, num_queries), "made_from": ""}
        for n, start in enumerate(starts)
    ]
    files = PartFiles(folder.work / "parts", folder.path)
    parts = files.written(items)
    missing = [item for item in items if item["part"] not in parts]
    run = partial(run_on_ray, placement=placement, at_once=config.num_workers)
    done = sum(item["stop"] - item["start"] for item in items if item["part"] in parts)
    with Progress("mine", num_queries, "queries", done=done) as progress:
        for part in files.write(task, missing, run):
            parts[part.number] = part
            done += part.report["stop"] - part.report["start"]
            progress.update(done)
    return [parts[item["part"]] for item in items]


def _finish(
    folder: JobFolder,
    config: MineConfig,
    parts: Sequence[Part],
    num_queries: int,
    index: CandidateIndex,
    recall: float | None,
) -> Outcome:
    """Parts, quarantine, manifest."""
    folder.check_owner()
    counts = folder.write_quarantine(rejected for part in parts for rejected in part.refused())
    folder.take_parts({part.entry["name"]: part.file for part in parts})
    num_unusable = max(part.report["unusable"] for part in parts)
    for count, what in ((num_unusable, "have no usable vector"), (index.num_repeated, "repeat the content of another")):
        if count:
            print(f"mine: {count:,} candidates {what} and are no neighbours", file=sys.stderr)
    counters = folder.finish(
        unit="queries",
        num_read=num_queries,
        num_kept=sum(part.report["kept"] for part in parts),
        refused=counts,
        pending=0,
        extra_counters={
            "neighbours": sum(part.report["rows"] for part in parts),
            "candidates": len(index.order),
            "unusable_candidates": num_unusable,
            "repeated_candidates": index.num_repeated,
        },
        described=[part.entry for part in parts],
        details={} if recall is None else {"recall": recall},
    )
    if not counters["kept"]:
        return nothing_kept(counters, config.output, code=FAILED)
    return Outcome(counters)
