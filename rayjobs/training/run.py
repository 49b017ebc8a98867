"""Trains on the samples of a job: mapped once, batches counted, processes run and watched, the folder finished."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mme5core.errors import InputError, WorkFailed
from mme5core.sample_table import SampleTable, count_by
from mme5core.training.ending import Ending, read_ending
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import SAMPLES_FILE, SUMMARY, make_sampler, stop_file
from mme5core.types import Rejected
from rayjobs.command.outcome import Outcome, Stopped
from rayjobs.command.signals import stopping_softly
from rayjobs.folder import JobFolder
from rayjobs.mapped_samples import map_once
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.processes import run_processes
from rayjobs.on_ray.resources import TRAIN, place_for
from rayjobs.training.config import RunConfig
from rayjobs.training.inputs import Sources, check_batches
from rayjobs.training.watch import read_summary, watched

STOP_GRACE_S = 30.0
"""How long a stop waits for the step that is under way and for its checkpoint."""

Process = Callable[[TrainingRun, int | None], None]
"""The life of one process, given its run and its number of threads; it travels to the cluster."""


def run_training(
    config: RunConfig,
    folder: JobFolder,
    sources: Sources,
    process: Process,
    *,
    job: str,
    num_negatives: int,
    least_negatives: int | None = None,
    needs_scores: bool = False,
) -> Outcome:
    """Train, and leave the model in the folder.

    Args:
        folder: of the job, entered, and not opened yet.
        job: for messages.
        num_negatives, least_negatives, needs_scores: see `map_samples`.
    """
    finished = folder.open()
    if finished:
        return Outcome(finished["counters"], reason="already done")
    refused, num_read = map_once(
        sources,
        folder.work / SAMPLES_FILE,
        job=job,
        num_negatives=num_negatives,
        least_negatives=least_negatives,
        limit=config.limit,
        needs_scores=needs_scores,
        images=config.images,
    )
    samples = SampleTable(folder.work / SAMPLES_FILE)
    steps = _count_steps(config, samples, refused, job)
    if not (folder.path / "model").is_dir():
        with connected(dashboard=True):
            _train(config, folder, steps.num_steps, process, job)
    for left_over in folder.path.glob(".model-*"):
        shutil.rmtree(left_over)
    counters = folder.finish(
        unit="training samples",
        num_read=num_read,
        num_kept=len(samples) - len(steps.without_batch),
        refused=folder.write_quarantine([*refused, *steps.without_batch]),
        pending=0,
        extra_counters={"steps": steps.num_steps},
        details={"modality_combinations": count_by(samples.combinations), "epoch": steps.epoch} | read_summary(folder),
    )
    return Outcome(counters)


@dataclass(frozen=True, slots=True)
class _Steps:
    """What a run will do: its steps, what an epoch holds, and the samples that no batch takes."""

    num_steps: int
    epoch: dict[str, int]
    without_batch: list[Rejected]


def _count_steps(config: RunConfig, samples: SampleTable, refused: list[Rejected], job: str) -> _Steps:
    """
    Raises:
        InputError: there are no samples, or no batch can be made of them.
    """
    if not len(samples):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(r.reason for r in refused).most_common())
        first = f" (the first: {refused[0].id}, {refused[0].reason}, {refused[0].detail})" if refused else ""
        raise InputError(f"no samples left: {reasons or 'the input has no rows'}{first}")
    check_batches(config, len(samples))
    try:
        sampler = make_sampler(samples, config)
    except ValueError as error:
        raise InputError(str(error)) from None
    sizes = sampler.epoch_sizes()
    epoch = {"batches": len(sizes), "smallest_batch": min(sizes), "samples": sum(sizes)}
    without = [Rejected(samples.id_of(row), "no_batch", why) for row, why in sampler.rows_without_batch().items()]
    for line in _remarks(config, sizes, without, len(samples)):
        print(f"{job}: {line}", file=sys.stderr)
    return _Steps(config.num_steps or max(1, sampler.num_batches(config.num_epochs)), epoch, without)


def _remarks(config: RunConfig, sizes: list[int], without: list[Rejected], num_samples: int) -> Iterator[str]:
    if min(sizes) < config.batch_size:
        num_small = sum(size < config.batch_size for size in sizes)
        yield (
            f"an epoch has {len(sizes):,} batches, {num_small:,} of them of fewer than {config.batch_size} rows "
            "(a batch is of one source and one modality combination)"
        )
    if without:
        yield f"{len(without):,} samples are refused, since no batch can take them: {without[0].detail}"
    num_waiting = num_samples - len(without) - sum(sizes)
    if config.weights is None and num_waiting > 0:
        yield f"{num_waiting:,} of {num_samples:,} samples wait for the second epoch: they make no batch in the first"


def _train(config: RunConfig, folder: JobFolder, num_steps: int, process: Process, job: str) -> None:
    """
    Raises:
        InputError: a process has refused a setting.
        WorkFailed: the training has failed.
        Stopped: on SIGTERM or Ctrl-C, with a checkpoint of the last step.
    """
    # A GPU for each process where the cluster has any, or is said to; never the CPU without a line.
    placement = place_for(TRAIN, config.num_workers, use_gpu=config.use_gpu, job=job)
    run = TrainingRun(config, folder.path, folder.work, folder.owner, folder.run.fingerprint, num_steps)
    for file in (folder.work / SUMMARY, *folder.work.glob("ended-*"), *folder.work.glob("stop-*")):
        file.unlink(missing_ok=True)
    with stopping_softly(STOP_GRACE_S) as is_to_stop, watched(folder, num_steps, job):

        def look() -> None:
            if is_to_stop.is_set():
                stop_file(folder.work, folder.owner).touch()
                if not (folder.work / SUMMARY).is_file():
                    raise Stopped  # no step has begun

        run_processes(
            partial(process, run),
            folder.work,
            num_workers=config.num_workers,
            placement=placement,
            max_failures=config.max_failures,
            look=look,
        )
    _check_ending(read_ending(folder.work, folder.owner))


def _check_ending(ending: Ending | None) -> None:
    """
    Raises:
        InputError, WorkFailed, Stopped: the processes ended before the last step.
    """
    if ending is None:
        return
    if ending.kind == "stopped":
        raise Stopped
    raise InputError(ending.reason) if ending.kind == "refused" else WorkFailed(ending.reason)
