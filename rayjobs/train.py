"""A LoRA-trained embedding model from samples: train --config mme5 input=samples/ model=base/ output=run/"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mme5core.model_folder import check_model_files, model_identity, model_width
from mme5core.prompt_styles import check_style
from mme5core.readers import InputError, input_identity
from mme5core.readers.samples import SampleTable, count_by, map_samples
from mme5core.sampling import BatchSampler
from mme5core.types import Rejected
from rayjobs import cli
from rayjobs.cluster import actor_cpus, connected
from rayjobs.config import ConfigError, TrainConfig, fingerprint, row_keys
from rayjobs.output import JobFolder, Run, write_json
from rayjobs.progress import Progress
from rayjobs.scan import shards_of

if TYPE_CHECKING:
    from mme5core.checkpoint import Moments
    from mme5core.objective import Objective, TaskTemperatures

LOG = Path("log") / "metrics.jsonl"
OWNER = "owner"
POLL_EVERY_S = 0.5


def run(config: TrainConfig) -> cli.Outcome:
    shards = shards_of(config.input, suffixes=(".parquet",))
    _check(config)
    identities = {"input": input_identity(shards), "model": model_identity(config.model)}
    folder = JobFolder(
        config.output,
        Run("train", config.model_dump(), fingerprint(config, **identities), row_keys(config), identities),
    )
    finished = folder.open()
    if finished:
        return cli.Outcome(finished["counters"], reason="already done")
    refused, num_read = _map_samples(config, shards, folder)
    samples = SampleTable(folder.work / "samples.arrow")
    num_steps = _count_steps(config, samples, Counter(rejected.reason for rejected in refused))
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
        details={"modality_combinations": count_by(samples.combinations)} | _read_summary(folder),
    )
    return cli.Outcome(counters)


def _check(config: TrainConfig) -> None:
    """What can be known to be wrong before the first second of training."""
    if config.batch_size < config.num_workers:
        raise ConfigError(
            f"batch_size={config.batch_size} leaves some of num_workers={config.num_workers} without a row"
        )
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


def _map_samples(config: TrainConfig, shards: list[Path], folder: JobFolder) -> tuple[list[Rejected], int]:
    """The samples as one mapped file, made once; what was refused on the way is kept beside it."""
    file, refusals = folder.work / "samples.arrow", folder.work / "refused.json"
    if not refusals.is_file():
        num_read, refused = 0, list[Rejected]()
        try:
            with Progress("train: reading", 0, "samples") as progress:
                for item in map_samples(
                    shards,
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


def _count_steps(config: TrainConfig, samples: SampleTable, refused: Counter[str]) -> int:
    if not len(samples):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in refused.most_common())
        raise ConfigError(f"no samples left: {reasons or 'the input has no rows'}")
    try:
        sampler = _sampler(samples, config.model_dump())
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config.num_steps or max(1, sampler.num_batches(config.num_epochs))


def _sampler(samples: SampleTable, config: dict[str, Any]) -> BatchSampler:
    return BatchSampler(
        samples.combinations, samples.positive_keys, batch_size=config["batch_size"], seed=config["seed"]
    )


def _train(ray: Any, config: TrainConfig, folder: JobFolder, num_steps: int) -> None:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    num_gpus = ray.cluster_resources().get("GPU", 0)
    use_gpu = bool(num_gpus) if config.use_gpu is None else config.use_gpu
    if use_gpu and num_gpus < config.num_workers:
        raise ConfigError(f"num_workers={config.num_workers} need a GPU each; the cluster has {num_gpus:.0f}")
    owner = secrets.token_hex(8)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": config.model_dump(),
            "folder": str(folder.path),
            "work": str(folder.work),
            "owner": owner,
            "num_steps": num_steps,
            "threads": _threads_per_worker(config.num_workers) if not use_gpu else 0,
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
    watcher = threading.Thread(target=_watch, args=(folder.path / LOG, num_steps, stop_watching), daemon=True)
    watcher.start()
    try:
        trainer.fit()
    except Exception as error:
        raise _explain(error) from None
    finally:
        stop_watching.set()
        watcher.join()


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


def _watch(log: Path, num_steps: int, stop: threading.Event) -> None:
    """Show the progress that rank 0 writes to the log."""
    with Progress("train", num_steps, "steps") as progress:
        first = True
        while True:
            is_last = stop.wait(POLL_EVERY_S)
            lines = log.read_text().splitlines() if log.is_file() else []
            if lines:
                last = json.loads(lines[-1])
                if first:
                    progress.restart(last["step"])
                    first = False
                progress.update(last["step"], f"loss {last['loss']:.3f}, {last['rows'] / last['seconds']:.0f} rows/s")
            if is_last:
                return


def _threads_per_worker(num_workers: int) -> int:
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, num_cpus // num_workers)


def _train_worker(job: dict[str, Any]) -> None:
    """One training process: build, resume, train, save."""
    import torch

    from mme5core.adapters import add_adapter
    from mme5core.checkpoint import collect_state, load_latest, restore_state, save_checkpoint
    from mme5core.distributed import rank
    from mme5core.encoder import Encoder
    from mme5core.training import fit
    from rayjobs import deepspeed_engine

    config, folder, work = job["config"], Path(job["folder"]), Path(job["work"])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config["seed"])
    encoder = Encoder.load(
        config["model"],
        prompt_style=config["prompt_style"],
        device=device,
        dtype=config["dtype"],
        # torch's fused attention is several times slower than the plain one in the backward pass on a CPU.
        attention="eager" if device == "cpu" else None,
    )
    encoder.max_tokens = config["max_tokens"]
    lora = config["lora"]
    encoder.module.model = add_adapter(encoder.module.model, **lora)
    is_chief = rank() == 0
    if is_chief:
        _write_model_card(work, encoder)
    engine, moments = _build_engine(encoder.module, config)
    samples = SampleTable(work / "samples.arrow")
    temperatures = _temperatures(config, samples.tasks)
    first_step = 0
    checkpoint = load_latest(folder / "checkpoints")
    if checkpoint:
        first_step, state = checkpoint
        if temperatures is not None:
            temperatures.load_tensors(state, num_updates=first_step)
        moments.create(first_step)
        restore_state(encoder.module, state, moments)
    if is_chief:
        _cut_log(folder / LOG, first_step)
    for result in fit(
        engine,
        engine.optimizer,
        encoder,
        samples,  # type: ignore[arg-type]
        _sampler(samples, config),
        objective=_objective(config),
        temperatures=temperatures,
        num_steps=job["num_steps"],
        first_step=first_step,
        learning_rate=config["learning_rate"],
        warmup_ratio=config["warmup_ratio"],
        num_negatives=config["num_negatives"],
        grad_cache=config["grad_cache"],
        tower_once=config["tower_once"],
        chunk_rows=config["chunk_rows"],
        max_chunk_tokens=config["chunk_tokens"],
        seed=config["seed"],
        autocast=config["autocast"],
        picture_cache_bytes=config["picture_cache_mb"] << 20,
    ):
        _check_owner(work, job["owner"])
        if is_chief:
            with (folder / LOG).open("a") as log:
                log.write(json.dumps(asdict(result) | {"time": time.time()}) + "\n")
        if result.step % config["save_every"] == 0 or result.step == job["num_steps"]:
            state = collect_state(encoder.module, moments)
            if temperatures is not None:
                state |= temperatures.tensors()
            if is_chief:
                save_checkpoint(folder / "checkpoints", result.step, state, keep=config["keep_checkpoints"])
    with deepspeed_engine.gathered(encoder.module):
        if is_chief:
            staged = folder / f".model-{job['owner']}"  # as deep as `model`: it names its base by a relative path too
            shutil.rmtree(staged, ignore_errors=True)
            encoder.save(staged)
            _check_owner(work, job["owner"])
            staged.rename(folder / "model")


def _build_engine(module: Any, config: dict[str, Any]) -> tuple[Any, Moments]:
    """The engine of the ZeRO stage, and where it keeps its weights and moments."""
    import torch

    from mme5core.checkpoint import PlainMoments
    from mme5core.gradcache import PlainEngine
    from rayjobs import deepspeed_engine

    if config["zero_stage"]:
        engine = deepspeed_engine.build(module, config)
        return engine, deepspeed_engine.ShardedMoments(engine)
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config["learning_rate"], weight_decay=config["weight_decay"])
    return PlainEngine(module, optimizer, max_grad_norm=config["max_grad_norm"]), PlainMoments(optimizer)


def _objective(config: dict[str, Any]) -> Objective:
    from mme5core.objective import Objective

    loss = config["loss"]
    return Objective(
        config["temperature"],
        kind=loss["kind"],
        negatives=config["negatives"],
        symmetric=loss["symmetric"],
        hardness=loss["hardness"],
        margin=None if loss["margin"] is None else (loss["margin_kind"], loss["margin"]),
        matryoshka_dims=tuple(loss["matryoshka_dims"]),
    )


def _temperatures(config: dict[str, Any], tasks: list[str]) -> TaskTemperatures | None:
    from mme5core.objective import TaskTemperatures

    if not config["loss"]["learn_temperature"]:
        return None
    return TaskTemperatures(tasks, config["temperature"], learning_rate=config["loss"]["temperature_learning_rate"])


def _write_model_card(work: Path, encoder: Any) -> None:
    model = encoder.module.model
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    write_json(
        work / "summary.json",
        {
            "adapted_layers": sorted({name.split(".lora_")[0] for name in trainable if ".lora_" in name}),
            "trainable_parameters": sum(trainable.values()),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )


def _read_summary(folder: JobFolder) -> dict[str, Any]:
    file = folder.work / "summary.json"
    summary: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    lines = (folder.path / LOG).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    return {"training": summary | {"first_loss": losses[0], "last_loss": losses[-1]}}


def _check_owner(work: Path, owner: str) -> None:
    """Stop the workers of a run whose driver was killed: they may live on while the next run is under way.

    Raises:
        RuntimeError: the folder belongs to another run by now.
    """
    try:
        found = (work / OWNER).read_text()
    except FileNotFoundError:
        found = ""
    if found != owner:
        raise RuntimeError("another run of this folder has taken over")


def _cut_log(log: Path, first_step: int) -> None:
    """Drop the lines of steps that will be done again."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines() if log.is_file() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= first_step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # cut off by a kill
    log.write_text("".join(line + "\n" for line in kept))


def main() -> None:
    cli.main("train", {"": run})


if __name__ == "__main__":
    main()
