"""A LoRA-trained embedding model from samples: train --config mme5 input=samples/ model=base/ output=run/"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial

from mme5core.durable import write_json
from mme5core.errors import InputError
from mme5core.hub import pinned
from mme5core.progress import Progress
from mme5core.sample_table import SampleTable, count_by, map_samples
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import REFUSED, SAMPLES_FILE, SUMMARY, make_sampler
from mme5core.types import Rejected
from rayjobs.command.outcome import Outcome
from rayjobs.folder import JobFolder
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.processes import run_processes
from rayjobs.on_ray.resources import TRAIN, Placement, cluster_gpus, place
from rayjobs.train.config import TrainConfig
from rayjobs.train.inputs import Sources, check, check_batch_size, sources_of, train_folder
from rayjobs.train.watch import read_summary, watched


def run(config: TrainConfig) -> Outcome:
    # Processes may be replaced hours later; the hub's branch may move meanwhile.
    config = config.model_copy(update={"model": pinned(config.model)})
    sources = sources_of(config)
    check(config)
    with train_folder(config, sources) as folder:
        finished = folder.open()
        if finished:
            return Outcome(finished["counters"], reason="already done")
        refused, num_read = _map_samples(config, sources, folder)
        samples = SampleTable(folder.work / SAMPLES_FILE)
        num_steps, epoch = _count_steps(config, samples, refused)
        if not (folder.path / "model").is_dir():
            with connected(dashboard=True):
                _train(config, folder, num_steps)
        for left_over in folder.path.glob(".model-*"):
            shutil.rmtree(left_over)
        counters = folder.finish(
            unit="training samples",
            num_read=num_read,
            num_kept=len(samples),
            refused=folder.write_quarantine(refused),
            pending=0,
            extra_counters={"steps": num_steps},
            details={"modality_combinations": count_by(samples.combinations), "epoch": epoch} | read_summary(folder),
        )
        return Outcome(counters)


def _map_samples(config: TrainConfig, sources: Sources, folder: JobFolder) -> tuple[list[Rejected], int]:
    """The samples as one mapped file, made once; what was refused on the way is kept beside it."""
    file, refusals = folder.work / SAMPLES_FILE, folder.work / "refused.json"
    if not refusals.is_file():
        num_read, refused = 0, list[Rejected]()
        with Progress("train: reading", 0, "samples") as progress:
            for report in map_samples(
                sources,
                file,
                num_negatives=config.num_negatives,
                limit=config.limit,
                needs_scores=config.loss.kind == "soft_label_kl",
            ):
                if isinstance(report, list):
                    refused = report
                else:
                    num_read = report
                    progress.update(num_read)
        write_json(refusals, {"read": num_read, "refused": [asdict(rejected) for rejected in refused]})
    stored = json.loads(refusals.read_text())
    return [Rejected(**row) for row in stored["refused"]], stored["read"]


def _count_steps(config: TrainConfig, samples: SampleTable, refused: list[Rejected]) -> tuple[int, dict[str, int]]:
    """Steps of the run; and the batches of an epoch, their smallest, and the samples that they hold."""
    if not len(samples):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(r.reason for r in refused).most_common())
        first = f" (the first: {refused[0].id}, {refused[0].reason}, {refused[0].detail})" if refused else ""
        raise InputError(f"no samples left: {reasons or 'the input has no rows'}{first}")
    check_batch_size(config, len(samples))
    try:
        sampler = make_sampler(samples, config)
    except ValueError as error:
        raise InputError(str(error)) from None
    sizes = sampler.epoch_sizes()
    epoch = {"batches": len(sizes), "smallest_batch": min(sizes), "samples": sum(sizes)}
    if min(sizes) < config.batch_size:
        num_small = sum(size < config.batch_size for size in sizes)
        print(
            f"train: an epoch has {len(sizes):,} batches, {num_small:,} of them of fewer than {config.batch_size} rows "
            "(a batch is of one source and one modality combination)",
            file=sys.stderr,
        )
    return config.num_steps or max(1, sampler.num_batches(config.num_epochs)), epoch


def _train(config: TrainConfig, folder: JobFolder, num_steps: int) -> None:
    """
    Raises:
        InputError: a process has refused a setting.
    """
    placement = _placement(config)
    run = TrainingRun(config, folder.path, folder.work, folder.owner, folder.run.fingerprint, num_steps)
    for file in (SUMMARY, REFUSED):
        (folder.work / file).unlink(missing_ok=True)
    with watched(folder, num_steps):
        run_processes(
            partial(_process, run),
            folder.work,
            num_workers=config.num_workers,
            placement=placement,
            max_failures=config.max_failures,
        )
    if (folder.work / REFUSED).is_file():
        raise InputError(json.loads((folder.work / REFUSED).read_text())["reason"])


def _process(run: TrainingRun, num_threads: int | None) -> None:
    from mme5core.training.process import train_process  # torch, which the driver does not need

    train_process(run, num_threads=num_threads)


def _placement(config: TrainConfig) -> Placement:
    """A GPU for each process where the cluster has any, or is said to; never the CPU without a line."""
    use_gpu = config.use_gpu
    if use_gpu is None:
        use_gpu = bool(cluster_gpus())
        if not use_gpu:
            print("train: the cluster has no GPU: training on CPUs (use_gpu=true would refuse)", file=sys.stderr)
    return place(TRAIN, config.num_workers, gpus_per_worker=1.0 if use_gpu else 0.0)
