"""The settings of a training run, from the recipe to the code that uses them."""

from __future__ import annotations

from typing import Literal

from mme5core.embedding_settings import ReadingSettings
from mme5core.settings import Section, key, required


class LoraSettings(Section):
    method: Literal["lora", "dora", "none"] = key(
        "lora",
        "the adapter's kind; none: full fine-tuning in float32, of all weights of the towers that targets names "
        "(norms, gates and embeddings too)",
    )
    rank: int = key(8, "rank of the adapter", ge=1)
    alpha: float = key(64.0, "scale is alpha / rank", gt=0)
    rank_stabilised: bool = key(False, "scale by alpha / sqrt(rank) instead")
    dropout: float = key(0.0, "dropout on the adapter's input", ge=0, lt=1)
    dropout_on: Literal["input", "low_rank"] = key(
        "input",
        "dora: dropout on the input of base and adapter, as published, or, faster, of the adapter alone",
    )
    targets: str | list[str] = key(
        "language", "linear layers of: language, vision, all; mme5; a list of name endings; a regular expression"
    )
    train_embeddings: bool = key(False, "train the token embeddings too, all of them")
    quantize: Literal["nf4"] | None = key(None, "hold the frozen weights in 4 bits (QLoRA); needs a GPU")


class LossSettings(Section):
    kind: Literal["info_nce", "soft_label_kl", "distillation"] = key(
        "info_nce",
        "InfoNCE; or the divergence from the scores that samples bring: of a judge as UniME-V2 has it, or of a "
        "reranker's distribution over the candidates",
    )
    teacher_temperature: float = key(1.0, "of distillation: divides the reranker's log-odds", gt=0, added_later=True)
    divergence: Literal["symmetric_kl", "jensen_shannon"] = key(
        "symmetric_kl", "of soft labels: as UniME-V2's code has it, or the one that its paper names", added_later=True
    )
    eps: float = key(1e-8, "of soft labels: added to shares within logarithms", gt=0, added_later=True)
    in_batch_weight: float = key(
        0.0,
        "of InfoNCE over the batch beside soft labels or distillation; 0: a query's own candidates only",
        ge=0,
        added_later=True,
    )
    symmetric: bool = key(
        False, "InfoNCE from document to query too, the mean of both; distillation: both directions of the divergence"
    )
    hardness: float = key(0.0, "weight of near negatives, exp(hardness x similarity); 9 in LLaVE", ge=0)
    margin: float | None = key(
        None, "leave out negatives as similar as the positive less this; null: none", ge=-2, le=2
    )
    margin_kind: Literal["absolute", "relative"] = key(
        "absolute", "the margin is a similarity, or a share of the positive's"
    )
    margin_spares_own: bool = key(
        False,
        "the margin leaves out documents of other queries only, never a query's own hard negatives",
        added_later=True,
    )
    matryoshka_dims: list[int] = key([], "widths whose first columns shall be usable alone; empty: the whole only")
    learn_temperature: bool = key(False, "learn one temperature for each task of the samples, from `temperature` on")
    temperature_learning_rate: float = key(1e-3, "of the temperatures' logarithms", gt=0)


class RunSettings(Section):
    """What every kind of training has."""

    model: str = required("base model: checkpoint folder or hub id", names_input=True, path="existing")
    seed: int = key(0, "every random choice follows from it")
    num_workers: int = key(1, "training processes; the contrastive batch is split over them", rows=False, ge=1)
    batch_size: int = key(256, "contrastive batch, rows over all workers together", ge=2)
    weights: list[float] | None = key(
        None, "how often batches come from each entry of input, relative; null: every row once an epoch"
    )
    interleave_rows: int | None = key(
        None, "rows of a batch from one entry of input and modality combination; null: all of them", ge=1
    )
    num_steps: int | None = key(None, "optimizer steps; null: num_epochs", ge=1)
    num_epochs: float = key(1.0, "passes over the data", gt=0)
    chunk_rows: int = key(256, "rows of one forward pass at most; with dropout another draw", rows=False, ge=1)
    chunk_tokens: int = key(
        1 << 20, "rows x longest row of one forward pass at most; with dropout another draw", rows=False, ge=1
    )
    grad_cache: bool = key(
        False, "keep the activations of one chunk only, for a second forward pass; same numbers", rows=False
    )
    activation_checkpointing: bool = key(
        False, "keep each layer's input only, and compute the rest again in the backward pass", rows=False
    )
    tower_once: bool = key(
        True, "run a vision tower in which nothing trains once per distinct picture and step", rows=False
    )
    learning_rate: float = key(1e-5, "peak learning rate", gt=0)
    warmup_ratio: float = key(0.05, "share of the steps with rising learning rate", ge=0, le=1)
    weight_decay: float = key(0.0, "of AdamW", ge=0)
    max_grad_norm: float = key(5.0, "gradients are clipped to this norm", gt=0)
    lora: LoraSettings = key(LoraSettings(), "the adapter")
    remote_code: bool = key(False, "run code that comes with the base model; it can do anything that you can")
    autocast: Literal["none", "bfloat16"] = key("none", "precision of the matrix products")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "dtype of the frozen weights; auto: the checkpoint's own"
    )
    zero_stage: Literal[0, 1, 2, 3] = key(
        2, "DeepSpeed ZeRO stage; 0: every worker holds all, without DeepSpeed", rows=False
    )
    save_every: int = key(50, "steps between checkpoints", rows=False, ge=1)
    checkpoints: str | None = key(
        None,
        "where checkpoints go: folder, or an address such as s3://bucket/run; null: in output",
        rows=False,
        path="any",
    )
    keep_checkpoints: int = key(2, "checkpoints kept", rows=False, ge=1)
    picture_cache_mb: int = key(512, "prepared pictures that each worker keeps from step to step, MB", rows=False, ge=0)
    picture_threads: int = key(1, "threads of each worker that decode pictures beside the training", rows=False, ge=1)
    tower_features_mb: int = key(
        4096,
        "tower_once: of a step's features, what stays on the accelerator, MB; the rest waits in host memory",
        rows=False,
        ge=0,
    )


class TrainingSettings(ReadingSettings, RunSettings):
    """Of an embedder."""

    temperature: float = key(0.02, "divides the similarities", gt=0)
    num_negatives: int = key(1, "hard negatives of each query", ge=0)
    negatives: Literal["own", "all"] = key("own", "hard negatives that a query sees: its own, or the whole batch's")
    loss: LossSettings = key(LossSettings(), "the loss")
    prompt_style: str = key("mme5", "how contents become prompts; stored with the model")
    max_tokens: int = key(256, "longest prompt, tokens", ge=4)
