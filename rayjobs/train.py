"""A LoRA-trained embedding model from samples: train --config mme5 input=samples/ model=base/ output=run/"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mme5core.model_folder import check_model_files, model_identity, model_width
from mme5core.prompt_styles import check_style
from mme5core.readers import InputError, input_files, input_identity
from mme5core.sample_table import SampleTable, count_by, map_samples
from mme5core.storage import AnyPath, locate
from mme5core.types import Rejected
from rayjobs import cli
from rayjobs.cluster import actor_cpus, connected, threads_per_worker
from rayjobs.config import ConfigError, TrainConfig
from rayjobs.output import JobFolder, job_folder, write_json
from rayjobs.progress import Progress
from rayjobs.scan import shards_of
from rayjobs.train_files import LOG, OWNER, REFUSED, SUMMARY, make_sampler

POLL_EVERY_S = 0.5

Sources = dict[str, list[AnyPath]]


def run(config: TrainConfig) -> cli.Outcome:
    sources = sources_of(config)
    check(config)
    folder = train_folder(config, sources)
    finished = folder.open()
    if finished:
        return cli.Outcome(finished["counters"], reason="already done")
    refused, num_read = _map_samples(config, sources, folder)
    samples = SampleTable(folder.work / "samples.arrow")
    num_steps, epoch = _count_steps(config, samples, refused)
    if not (folder.path / "model").is_dir():
        with connected(dashboard=True) as ray:
            _train(ray, config, folder, num_steps)
    for left_over in folder.path.glob(".model-*"):
        shutil.rmtree(left_over)
    counters = folder.finish(
        unit="training samples",
        num_read=num_read,
        num_kept=len(samples),
        refused=folder.write_quarantine(refused),
        pending=0,
        extra_counters={"steps": num_steps},
        details={"modality_combinations": count_by(samples.combinations), "epoch": epoch} | _read_summary(folder),
    )
    return cli.Outcome(counters)


def sources_of(config: TrainConfig) -> Sources:
    """The files of each entry of the input, by its place, not its path: a folder that has moved is the same source."""
    return {f"input[{place}]": shards_of([entry], suffixes=(".parquet",)) for place, entry in enumerate(config.input)}


def train_folder(config: TrainConfig, sources: Sources) -> JobFolder:
    files = input_files([shard for shards in sources.values() for shard in shards])
    return job_folder("train", config, {"input": input_identity(files), "model": model_identity(config.model)}, files)


def check(config: TrainConfig) -> None:
    """What can be known to be wrong before the first second of training."""
    if len(set(config.input)) < len(config.input):
        raise ConfigError("input names a folder twice; say how often it is wanted with weights")
    if config.weights is not None and len(config.weights) != len(config.input):
        raise ConfigError(f"weights: {len(config.weights)} numbers for {len(config.input)} entries of input")
    if config.batch_size < config.num_workers:
        raise ConfigError(
            f"batch_size={config.batch_size} leaves some of num_workers={config.num_workers} without a row"
        )
    if config.lora.quantize and (config.lora.method == "none" or config.zero_stage == 3):
        raise ConfigError("lora.quantize: weights in 4 bits can neither train themselves nor be sharded by ZeRO-3")
    if config.loss.kind == "soft_label_kl" and not config.num_negatives:
        raise ConfigError("loss.kind=soft_label_kl compares hard negatives: num_negatives must be >= 1")
    try:
        check_style(config.prompt_style)
        check_model_files(config.model)
        width = model_width(config.model)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for dim in config.loss.matryoshka_dims:
        if dim < 1 or (width and dim > width):
            raise ConfigError(f"loss.matryoshka_dims: {dim} does not fit vectors of width {width}")


def _map_samples(config: TrainConfig, sources: Sources, folder: JobFolder) -> tuple[list[Rejected], int]:
    """The samples as one mapped file, made once; what was refused on the way is kept beside it."""
    file, refusals = folder.work / "samples.arrow", folder.work / "refused.json"
    if not refusals.is_file():
        num_read, refused = 0, list[Rejected]()
        try:
            with Progress("train: reading", 0, "samples") as progress:
                for item in map_samples(
                    sources,
                    file,
                    num_negatives=config.num_negatives,
                    limit=config.limit,
                    needs_scores=config.loss.kind == "soft_label_kl",
                ):
                    if isinstance(item, list):
                        refused = item
                    else:
                        num_read = item
                        progress.update(num_read)
        except InputError as error:
            raise ConfigError(str(error)) from None
        write_json(refusals, {"read": num_read, "refused": [asdict(rejected) for rejected in refused]})
    stored = json.loads(refusals.read_text())
    return [Rejected(**row) for row in stored["refused"]], stored["read"]


def _count_steps(config: TrainConfig, samples: SampleTable, refused: list[Rejected]) -> tuple[int, dict[str, int]]:
    """Steps of the run; and the batches of an epoch, their smallest, and the samples that they hold."""
    if not len(samples):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(r.reason for r in refused).most_common())
        first = f" (the first: {refused[0].id}, {refused[0].reason}, {refused[0].detail})" if refused else ""
        raise ConfigError(f"no samples left: {reasons or 'the input has no rows'}{first}")
    if config.batch_size > len(samples):
        raise ConfigError(f"batch_size={config.batch_size} is larger than the data: {len(samples):,} samples")
    try:
        sampler = make_sampler(samples, config.model_dump())
    except ValueError as error:
        raise ConfigError(str(error)) from None
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


def _absolute(place: str | None) -> str | None:
    """A path as the workers find it, whose current folder is another one."""
    if place is None:
        return None
    found = locate(place)
    return str(found.absolute()) if isinstance(found, Path) else place


def _train(ray: Any, config: TrainConfig, folder: JobFolder, num_steps: int) -> None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    num_gpus = ray.cluster_resources().get("GPU", 0)
    use_gpu = bool(num_gpus) if config.use_gpu is None else config.use_gpu
    if use_gpu and num_gpus < config.num_workers:
        raise ConfigError(f"num_workers={config.num_workers} need a GPU each; the cluster has {num_gpus:.0f}")
    owner = secrets.token_hex(8)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump() | {"checkpoints": _absolute(config.checkpoints)},
            "folder": str(folder.path),
            "work": str(folder.work),
            "owner": owner,
            "fingerprint": folder.run.fingerprint,
            "use_gpu": use_gpu,
            "num_steps": num_steps,
            "threads": threads_per_worker(config.num_workers) if not use_gpu else 0,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": actor_cpus(ray, config.num_workers, 1.0)} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder.work),
            failure_config=FailureConfig(max_failures=config.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
        ),
    )
    (folder.work / OWNER).write_text(owner)
    # Ray Train would resume from what it remembers of an earlier run of this name; our checkpoints decide.
    shutil.rmtree(folder.work / "ray", ignore_errors=True)
    stop_watching = threading.Event()
    for file in (SUMMARY, REFUSED):
        (folder.work / file).unlink(missing_ok=True)
    watcher = threading.Thread(target=_watch, args=(folder, num_steps, stop_watching), daemon=True)
    watcher.start()
    try:
        trainer.fit()
    except Exception as error:
        raise _explain(error) from None
    finally:
        stop_watching.set()
        watcher.join()
    if (folder.work / REFUSED).is_file():
        raise ConfigError(json.loads((folder.work / REFUSED).read_text())["reason"])


def _worker(job: dict[str, Any]) -> None:
    if not job["use_gpu"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves a worker without GPUs all that it could see
    from rayjobs.train_worker import train_worker  # torch, which the driver does not need

    train_worker(job)


def _explain(error: Exception) -> Exception:
    """What went wrong in a worker, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None) or {}
    cause: BaseException = next(iter(failures.values()), error)
    while getattr(cause, "cause", None) is not None or cause.__cause__ is not None:
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause
    if isinstance(cause, OSError):
        return cause
    first = next((line for line in str(cause).strip().splitlines()[::-1] if line.strip()), type(cause).__name__)
    return cli.JobFailed(f"training failed: {first.strip()}")


def _watch(folder: JobFolder, num_steps: int, stop: threading.Event) -> None:
    """Show what trains, and the progress that rank 0 writes to the log."""
    log, summary = folder.path / LOG, folder.work / SUMMARY
    started = time.time()
    with Progress("train", num_steps, "steps") as progress:
        first, is_described = True, False
        while True:
            is_last = stop.wait(POLL_EVERY_S)
            if not is_described and summary.is_file():
                print(f"train: {_describe(json.loads(summary.read_text()))}", file=sys.stderr, flush=True)
                is_described = True
            lines = log.read_text().splitlines() if log.is_file() else []
            last = json.loads(lines[-1]) if lines else None
            if last and last["time"] > started:  # until a worker begins, the log is the killed run's
                if first:
                    if last["step"] > 1:
                        print(f"train: going on at step {last['step']:,}", file=sys.stderr, flush=True)
                    progress.restart(last["step"])
                    first = False
                progress.update(last["step"], f"loss {last['loss']:.3f}, {last['rows'] / last['seconds']:.0f} rows/s")
            if is_last:
                return


def _describe(summary: dict[str, Any]) -> str:
    """What trains, in one line: how many weights, and the layers by the ends of their names."""
    adapted = summary["adapted_layers"]
    names = adapted or summary["trained_weights"]
    endings = Counter(".".join(name.split(".")[-1 if adapted else -2 :]) for name in names)
    listed = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    share = f"{summary['trainable_parameters']:,} of {summary['parameters']:,} weights train"
    return f"{share}, in {len(names)} {'layers' if adapted else 'tensors'}: {listed}"


def _read_summary(folder: JobFolder) -> dict[str, Any]:
    file = folder.work / SUMMARY
    summary: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    lines = (folder.path / LOG).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    ends = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}  # a lost folder has lost its log
    return {"training": summary | ends}


def main() -> None:
    cli.main("train", {"": run})


if __name__ == "__main__":
    main()
