"""One process of a training run: loads, resumes, trains, saves."""

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
from mme5core.distributed import rank, sum_over_processes
from mme5core.durable import write_json
from mme5core.encoder import Encoder
from mme5core.ownership import check_owner
from mme5core.sample_table import SampleTable
from mme5core.training import deepspeed_engine
from mme5core.training.checkpoint import Checkpoints, Moments, PlainMoments, collect_state, restore_state
from mme5core.training.fit import StepResult, fit
from mme5core.training.gradcache import PlainEngine
from mme5core.training.objective import Objective, TaskTemperatures
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import LOG, REFUSED, SAMPLES_FILE, SUMMARY, make_sampler
from mme5core.training.settings import LoraSettings, TrainingSettings


@dataclass
class Loaded:
    """What a process holds before it meets the others."""

    encoder: Encoder
    samples: SampleTable
    temperatures: TaskTemperatures | None
    checkpoints: Checkpoints


def train_process(run: TrainingRun, *, num_threads: int | None = None) -> None:
    """The whole life of one process. A setting that the model does not fit ends it in one line for all of them.

    Args:
        num_threads: of a process that computes on the CPU; None: torch's choice.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    problem = ""
    try:
        loaded = _load(run)
    except ValueError as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        write_json(run.work / REFUSED, {"reason": problem})
    # The others would wait for one that has left.
    num_refused = sum_over_processes(torch.tensor([float(bool(problem))], device=_device()))
    if num_refused.item():
        return
    _train(run, loaded)


def _load(run: TrainingRun) -> Loaded:
    """
    Raises:
        ValueError: a base that does not load, targets that it lacks, checkpoints of another run, ...
    """
    settings = run.settings
    if settings.autocast == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError("autocast=bfloat16: this GPU has no bfloat16; use autocast=none")
    torch.manual_seed(settings.seed)
    device = _device()
    encoder = Encoder.load(
        settings.model,
        prompt_style=settings.prompt_style,
        device=device,
        # Weights that train themselves need their small steps kept.
        dtype="float32" if _is_full(settings) and settings.dtype == "auto" else settings.dtype,
        remote_code=settings.remote_code,
        quantize=settings.lora.quantize,
        # torch's fused attention is several times slower than the plain one in the backward pass on a CPU.
        attention="eager" if device == "cpu" else None,
    )
    encoder.max_tokens = settings.max_tokens
    _make_trainable(encoder, settings.lora)
    if settings.activation_checkpointing:
        encoder.checkpoint_activations()
    samples = SampleTable(run.work / SAMPLES_FILE)
    checkpoints = Checkpoints(
        settings.checkpoints or run.folder / "checkpoints",
        keep=settings.keep_checkpoints,
        run=run.fingerprint,
        may_write=partial(check_owner, run.work, run.owner),
    )
    temperatures = _temperatures(settings, samples.tasks)
    return Loaded(encoder, samples, temperatures.to(device) if temperatures else None, checkpoints)


def _train(run: TrainingRun, loaded: Loaded) -> None:
    encoder, temperatures, is_chief = loaded.encoder, loaded.temperatures, rank() == 0
    if is_chief:
        _write_summary(run.work, encoder)
    engine, moments = _build_engine(encoder.module, run.settings)
    first_step = _last_checkpoint(loaded.checkpoints)
    if first_step:
        state = loaded.checkpoints.load(first_step)
        if temperatures is not None:
            temperatures.load_tensors(state, num_updates=first_step)
        moments.create(first_step)
        restore_state(encoder.module, state, moments)
        del state
    log = run.folder / LOG
    if is_chief:
        _cut_log(log, first_step)
    for result in _steps(run, loaded, engine, first_step):
        check_owner(run.work, run.owner)
        if is_chief:
            with log.open("a") as lines:
                lines.write(json.dumps(asdict(result) | {"time": time.time()}) + "\n")
        if result.step % run.settings.save_every == 0 or result.step == run.num_steps:
            state = collect_state(encoder.module, moments, keep=is_chief)
            if temperatures is not None:
                state |= temperatures.tensors()
            if is_chief:
                loaded.checkpoints.save(result.step, state)
    loaded.checkpoints.wait()
    _save_model(run, encoder)


def _save_model(run: TrainingRun, encoder: Encoder) -> None:
    is_full = _is_full(run.settings)
    with deepspeed_engine.gathered(encoder.module, frozen_too=is_full):
        if rank() == 0:
            staged = run.folder / f".model-{run.owner}"  # as deep as `model`: it names its base by a relative path too
            shutil.rmtree(staged, ignore_errors=True)
            encoder.save(staged, include_base=is_full)
            check_owner(run.work, run.owner)
            staged.rename(run.folder / "model")


def _steps(run: TrainingRun, loaded: Loaded, engine: Any, first_step: int) -> Iterator[StepResult]:
    settings = run.settings
    return fit(
        engine,
        loaded.encoder,
        loaded.samples,  # type: ignore[arg-type]
        make_sampler(loaded.samples, settings),
        objective=_objective(settings),
        temperatures=loaded.temperatures,
        num_steps=run.num_steps,
        first_step=first_step,
        learning_rate=settings.learning_rate,
        warmup_ratio=settings.warmup_ratio,
        num_negatives=settings.num_negatives,
        grad_cache=settings.grad_cache,
        tower_once=settings.tower_once,
        chunk_rows=settings.chunk_rows,
        max_chunk_tokens=settings.chunk_tokens,
        seed=settings.seed,
        autocast=settings.autocast,
        picture_cache_bytes=settings.picture_cache_mb << 20,
        device_features_bytes=settings.tower_features_mb << 20,
        num_threads=settings.picture_threads,
    )


def _last_checkpoint(checkpoints: Checkpoints) -> int:
    """The step to go on from, 0 for none: the first process looks, so that all go on from the same."""
    steps = checkpoints.steps() if rank() == 0 else []
    last = torch.tensor([float(steps[-1]) if steps else 0.0], device=_device(), dtype=torch.float64)
    return int(sum_over_processes(last).item())


def _device() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _is_full(settings: TrainingSettings) -> bool:
    return settings.lora.method == "none"


def _make_trainable(encoder: Encoder, lora: LoraSettings) -> None:
    """The adapter of the recipe, or the model's own weights."""
    where: dict[str, Any] = {"targets": lora.targets, "train_embeddings": lora.train_embeddings}
    if lora.method == "none":
        train_weights(encoder.module.model, **where)
        return
    encoder.module.model = add_adapter(
        encoder.module.model,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        use_dora=lora.method == "dora",
        dropout_on=lora.dropout_on,
        rank_stabilised=lora.rank_stabilised,
        **where,
    )


def _build_engine(module: Any, settings: TrainingSettings) -> tuple[Any, Moments]:
    """The engine of the ZeRO stage, and where it keeps its weights and moments."""
    if settings.zero_stage:
        engine = deepspeed_engine.build(
            module,
            zero_stage=settings.zero_stage,
            max_grad_norm=settings.max_grad_norm,
            weight_decay=settings.weight_decay,
        )
        return engine, deepspeed_engine.ShardedMoments(engine)
    trainable = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return PlainEngine(module, optimizer, max_grad_norm=settings.max_grad_norm), PlainMoments(optimizer)


def _objective(settings: TrainingSettings) -> Objective:
    loss = settings.loss
    return Objective(
        settings.temperature,
        kind=loss.kind,
        negatives=settings.negatives,
        symmetric=loss.symmetric,
        hardness=loss.hardness,
        margin=None if loss.margin is None else (loss.margin_kind, loss.margin),
        matryoshka_dims=tuple(loss.matryoshka_dims),
    )


def _temperatures(settings: TrainingSettings, tasks: list[str]) -> TaskTemperatures | None:
    if not settings.loss.learn_temperature:
        return None
    return TaskTemperatures(tasks, settings.temperature, learning_rate=settings.loss.temperature_learning_rate)


def _write_summary(work: Path, encoder: Encoder) -> None:
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
