"""What one process of a training run makes of its settings: model, samples, engine, loss, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mme5core.adapters import add_adapter, train_weights
from mme5core.encoder import Encoder
from mme5core.ownership import check_owner
from mme5core.sample_table import SampleTable
from mme5core.training import deepspeed_engine
from mme5core.training.checkpoint import Checkpoints, Moments, PlainMoments
from mme5core.training.contrastive import ContrastiveTask
from mme5core.training.gradcache import PlainEngine
from mme5core.training.objective import Objective, TaskTemperatures
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import SAMPLES_FILE
from mme5core.training.settings import RunSettings, TrainingSettings
from mme5core.training.step_task import StepTask


@dataclass
class Loaded:
    """What a process holds before it meets the others."""

    encoder: Encoder
    task: StepTask
    samples: SampleTable
    temperatures: TaskTemperatures | None
    checkpoints: Checkpoints


def load(run: TrainingRun) -> Loaded:
    """An embedder that is to be trained.

    Raises:
        ValueError: a base that does not load, targets that it lacks, checkpoints of another run, ...
    """
    settings = run.settings
    assert isinstance(settings, TrainingSettings)
    torch.manual_seed(settings.seed)
    encoder = Encoder.load(
        settings.model,
        prompt_style=settings.prompt_style,
        device=device_of_weights(settings),
        # Weights that train themselves need their small steps kept.
        dtype="float32" if is_full(settings) and settings.dtype == "auto" else settings.dtype,
        remote_code=settings.remote_code,
        quantize=settings.lora.quantize,
        attention=attention_here(),
        picture_side=settings.picture_side,
        positions=settings.positions,
    )
    encoder.max_tokens = settings.max_tokens
    make_trainable(encoder, settings)
    samples = SampleTable(run.work / SAMPLES_FILE)
    temperatures = _temperatures(settings, samples.tasks)
    temperatures = temperatures.to(device_here()) if temperatures else None
    task = ContrastiveTask(encoder, objective_of(settings), settings.num_negatives, temperatures)
    return Loaded(encoder, task, samples, temperatures, checkpoints_of(run))


def device_of_weights(settings: RunSettings) -> str:
    """
    Raises:
        ValueError: the GPU lacks the precision that is asked for.
    """
    if settings.autocast == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ValueError("autocast=bfloat16: this GPU has no bfloat16; use autocast=none")
    # Under ZeRO-3 the GPU need not hold the whole model at any time: DeepSpeed moves each weight's shard there.
    return "cpu" if settings.zero_stage == 3 else device_here()


def attention_here() -> str | None:
    # torch's fused attention is several times slower than the plain one in the backward pass on a CPU.
    return "eager" if device_here() == "cpu" else None


def checkpoints_of(run: TrainingRun) -> Checkpoints:
    return Checkpoints(
        run.settings.checkpoints or run.folder / "checkpoints",
        keep=run.settings.keep_checkpoints,
        run=run.fingerprint,
        may_write=partial(check_owner, run.work, run.owner),
    )


def device_here() -> str:
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def is_full(settings: RunSettings) -> bool:
    """Whether the model's own weights train."""
    return settings.lora.method == "none"


def build_engine(module: Any, settings: RunSettings) -> tuple[Any, Moments]:
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


def objective_of(settings: TrainingSettings) -> Objective:
    loss = settings.loss
    return Objective(
        settings.temperature,
        kind=loss.kind,
        negatives=settings.negatives,
        symmetric=loss.symmetric,
        hardness=loss.hardness,
        margin=None if loss.margin is None else (loss.margin_kind, loss.margin),
        margin_spares_own=loss.margin_spares_own,
        matryoshka_dims=tuple(loss.matryoshka_dims),
        divergence=loss.divergence,
        eps=loss.eps,
        in_batch_weight=loss.in_batch_weight,
        teacher_temperature=loss.teacher_temperature,
    )


def make_trainable(encoder: Encoder, settings: RunSettings) -> None:
    """Give the model the adapter of the recipe, or free its own weights."""
    lora = settings.lora
    where: dict[str, Any] = {"targets": lora.targets, "train_embeddings": lora.train_embeddings}
    if lora.method == "none":
        train_weights(encoder.module.model, **where)
    else:
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
    if settings.activation_checkpointing:
        encoder.checkpoint_activations()


def _temperatures(settings: TrainingSettings, tasks: list[str]) -> TaskTemperatures | None:
    if not settings.loss.learn_temperature:
        return None
    return TaskTemperatures(tasks, settings.temperature, learning_rate=settings.loss.temperature_learning_rate)
