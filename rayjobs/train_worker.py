"""One process of a training run: loads, resumes, trains, saves; `train` starts it on every worker."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mme5core.adapters import add_adapter, train_weights
from mme5core.checkpoint import Checkpoints, Moments, PlainMoments, collect_state, restore_state
from mme5core.distributed import rank, sum_over_processes
from mme5core.encoder import Encoder
from mme5core.gradcache import PlainEngine
from mme5core.objective import Objective, TaskTemperatures
from mme5core.sample_table import SampleTable
from mme5core.training import StepResult, fit
from rayjobs import deepspeed_engine
from rayjobs.output import write_json
from rayjobs.train_files import LOG, REFUSED, SUMMARY, check_owner, make_sampler


@dataclass
class Loaded:
    """What a process holds before it meets the others."""

    encoder: Encoder
    samples: SampleTable
    temperatures: TaskTemperatures | None
    checkpoints: Checkpoints


def train_worker(job: dict[str, Any]) -> None:
    """The whole life of one process. A setting that the model does not fit ends it in one line for all of them."""
    work = Path(job["work"])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    problem = ""
    try:
        loaded = _load(job)
    except ValueError as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        write_json(work / REFUSED, {"reason": problem})
    # The others would wait for one that has left.
    num_refused = sum_over_processes(torch.tensor([float(bool(problem))], device=_device()))
    if num_refused.item():
        return
    _run(job, loaded)


def _load(job: dict[str, Any]) -> Loaded:
    """
    Raises:
        ValueError: a base that does not load, targets that it lacks, checkpoints of another run, ...
    """
    config, folder, work = job["config"], Path(job["folder"]), Path(job["work"])
    if config["autocast"] == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError("autocast=bfloat16: this GPU has no bfloat16; use autocast=none")
    torch.manual_seed(config["seed"])
    device = _device()
    encoder = Encoder.load(
        config["model"],
        prompt_style=config["prompt_style"],
        device=device,
        # Weights that train themselves need their small steps kept.
        dtype="float32" if _is_full(config) and config["dtype"] == "auto" else config["dtype"],
        remote_code=config["remote_code"],
        quantize=config["lora"]["quantize"],
        # torch's fused attention is several times slower than the plain one in the backward pass on a CPU.
        attention="eager" if device == "cpu" else None,
    )
    encoder.max_tokens = config["max_tokens"]
    _make_trainable(encoder, config["lora"])
    if config["activation_checkpointing"]:
        encoder.checkpoint_activations()
    samples = SampleTable(work / "samples.arrow")
    checkpoints = Checkpoints(
        config["checkpoints"] or folder / "checkpoints",
        keep=config["keep_checkpoints"],
        run=job["fingerprint"],
        may_write=partial(check_owner, work, job["owner"]),
    )
    temperatures = _temperatures(config, samples.tasks)
    return Loaded(encoder, samples, temperatures.to(device) if temperatures else None, checkpoints)


def _run(job: dict[str, Any], loaded: Loaded) -> None:
    config, folder, work = job["config"], Path(job["folder"]), Path(job["work"])
    encoder, temperatures, is_chief = loaded.encoder, loaded.temperatures, rank() == 0
    if is_chief:
        _write_model_card(work, encoder)
    engine, moments = _build_engine(encoder.module, config)
    first_step = _last_checkpoint(loaded.checkpoints)
    if first_step:
        state = loaded.checkpoints.load(first_step)
        if temperatures is not None:
            temperatures.load_tensors(state, num_updates=first_step)
        moments.create(first_step)
        restore_state(encoder.module, state, moments)
        del state
    if is_chief:
        _cut_log(folder / LOG, first_step)
    for result in _steps(job, loaded, engine, first_step):
        check_owner(work, job["owner"])
        if is_chief:
            with (folder / LOG).open("a") as log:
                log.write(json.dumps(asdict(result) | {"time": time.time()}) + "\n")
        if result.step % config["save_every"] == 0 or result.step == job["num_steps"]:
            state = collect_state(encoder.module, moments, keep=is_chief)
            if temperatures is not None:
                state |= temperatures.tensors()
            if is_chief:
                loaded.checkpoints.save(result.step, state)
    loaded.checkpoints.wait()
    with deepspeed_engine.gathered(encoder.module, frozen_too=_is_full(config)):
        if is_chief:
            staged = folder / f".model-{job['owner']}"  # as deep as `model`: it names its base by a relative path too
            shutil.rmtree(staged, ignore_errors=True)
            encoder.save(staged, include_base=_is_full(config))
            check_owner(work, job["owner"])
            staged.rename(folder / "model")


def _steps(job: dict[str, Any], loaded: Loaded, engine: Any, first_step: int) -> Iterator[StepResult]:
    config = job["config"]
    return fit(
        engine,
        loaded.encoder,
        loaded.samples,  # type: ignore[arg-type]
        make_sampler(loaded.samples, config),
        objective=_objective(config),
        temperatures=loaded.temperatures,
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
        device_features_bytes=config["tower_features_mb"] << 20,
        num_threads=config["picture_threads"],
    )


def _last_checkpoint(checkpoints: Checkpoints) -> int:
    """The step to go on from, 0 for none: the first process looks, so that all go on from the same."""
    steps = checkpoints.steps() if rank() == 0 else []
    found = torch.tensor([float(steps[-1]) if steps else 0.0], device=_device(), dtype=torch.float64)
    return int(sum_over_processes(found).item())


def _device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _is_full(config: dict[str, Any]) -> bool:
    return bool(config["lora"]["method"] == "none")


def _make_trainable(encoder: Encoder, lora: dict[str, Any]) -> None:
    """The adapter of the recipe, or the model's own weights."""
    where = {"targets": lora["targets"], "train_embeddings": lora["train_embeddings"]}
    if lora["method"] == "none":
        train_weights(encoder.module.model, **where)
        return
    encoder.module.model = add_adapter(
        encoder.module.model,
        rank=lora["rank"],
        alpha=lora["alpha"],
        dropout=lora["dropout"],
        use_dora=lora["method"] == "dora",
        dropout_on=lora["dropout_on"],
        rank_stabilised=lora["rank_stabilised"],
        **where,
    )


def _build_engine(module: Any, config: dict[str, Any]) -> tuple[Any, Moments]:
    """The engine of the ZeRO stage, and where it keeps its weights and moments."""
    if config["zero_stage"]:
        engine = deepspeed_engine.build(module, config)
        return engine, deepspeed_engine.ShardedMoments(engine)
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config["learning_rate"], weight_decay=config["weight_decay"])
    return PlainEngine(module, optimizer, max_grad_norm=config["max_grad_norm"]), PlainMoments(optimizer)


def _objective(config: dict[str, Any]) -> Objective:
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
    if not config["loss"]["learn_temperature"]:
        return None
    return TaskTemperatures(tasks, config["temperature"], learning_rate=config["loss"]["temperature_learning_rate"])


def _write_model_card(work: Path, encoder: Encoder) -> None:
    model = encoder.module.model
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    write_json(
        work / SUMMARY,
        {
            "adapted_layers": sorted({name.split(".lora_")[0] for name in trainable if ".lora_" in name}),
            "trained_weights": sorted(name for name in trainable if ".lora_" not in name),
            "trainable_parameters": sum(trainable.values()),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )


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
