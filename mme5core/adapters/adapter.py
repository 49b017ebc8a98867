"""An adapter and where it goes, or the model's own weights; what a saved adapter must hold."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from mme5core.adapters.dora import use_step_dora
from mme5core.errors import first_line

TOWERS = {
    "language": ("language_model", "text_model"),
    "vision": ("vision_model", "visual", "vision_tower"),
}
MME5 = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "k_proj", "q_proj", "out_proj", "v_proj")
"""The name endings of mmE5's released recipe. On Llama-3.2-Vision they are the attention of text and vision tower and
the last matrix of the text's MLPs, on Qwen2-VL the text tower alone: the same words mean another adapter there."""


def resolve_targets(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers that `targets` means.

    Args:
        targets: "language", "vision", "all" (both towers), "mme5", a list of name endings such as "q_proj", or a
            regular expression that is found in a layer's full name.

    Raises:
        ValueError: nothing in the model is meant by it, or it is no regular expression.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if targets == "mme5":
        targets = MME5
    if not isinstance(targets, str):
        endings = tuple(targets)
        found = [name for name in linears if name.split(".")[-1] in endings or name.endswith(endings)]
    elif targets in (*TOWERS, "all"):
        found = [name for name in linears if _tower(name) in ((targets,) if targets != "all" else tuple(TOWERS))]
    else:
        try:
            found = [name for name in linears if re.search(targets, name)]
        except re.error as error:
            raise ValueError(f"targets {targets!r} is no regular expression: {error}") from None
    if not found:
        there = sorted({name.split(".")[-1] for name in linears})
        raise ValueError(
            f"targets {targets!r} match no linear layer; known: {', '.join(TOWERS)}, all, mme5, or names of layers, "
            f"which end in {', '.join(there)}"
        )
    return found


def add_adapter(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | Sequence[str],
    train_embeddings: bool,
    use_dora: bool = False,
    dropout_on: str = "input",
    rank_stabilised: bool = False,
) -> PeftModel:
    """The model with a fresh LoRA adapter, its own weights frozen; adapter weights are float32.

    Args:
        alpha: the adapter's output is scaled by alpha / rank.
        train_embeddings: train the token embeddings too, as a full copy in the adapter.
        use_dora: learn the length of each row of the adapted matrix apart from its direction (arXiv 2402.09353).
        dropout_on: what dropout does to a DoRA layer: "input", as published, to that of base and adapter alike; or
            "low_rank", as in LoRA, to the adapter's alone, which spares a second product with the base weight.
        rank_stabilised: scale by alpha / sqrt(rank) (arXiv 2312.03732).
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=resolve_targets(model, targets),
        modules_to_save=["embed_tokens"] if train_embeddings else None,
        init_lora_weights="gaussian",
        use_dora=use_dora,
        use_rslora=rank_stabilised,
    )
    if dropout_on not in ("input", "low_rank"):
        raise ValueError(f"unknown dropout_on {dropout_on!r}; known: input, low_rank")
    dtype = next(model.parameters()).dtype
    adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    for name, module in adapted.named_modules():
        if train_embeddings and name.endswith("embed_tokens"):
            # In bfloat16 a small step on a weight is lost in rounding; what it gives is of the model's own dtype.
            module.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    use_step_dora(adapted, whole_input=dropout_on == "input")
    return adapted  # type: ignore[return-value]


def train_weights(model: nn.Module, *, targets: str | Sequence[str], train_embeddings: bool) -> list[str]:
    """Full fine-tuning: let weights of the model itself train, and freeze the others; returns the trained names.

    Args:
        targets: "all" for every weight; else a tower's weights, or those of the linear layers that are meant.
        train_embeddings: the token embeddings too, where they are not meant already.
    """
    chosen = set(resolve_targets(model, targets)) if targets != "all" else set()
    names = []
    for name, parameter in model.named_parameters():
        is_meant = targets == "all" or name.rpartition(".")[0] in chosen or _tower(name) == targets
        parameter.requires_grad_(is_meant or (train_embeddings and "embed_tokens" in name))
        if parameter.requires_grad:
            names.append(name)
    return names


def _tower(name: str) -> str | None:
    parts = set(name.split("."))
    return next((tower for tower, modules in TOWERS.items() if parts & set(modules)), None)


def load_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """The model with the adapter of `folder`, folded into its weights if `merge`.

    Raises:
        ValueError: no adapter there, one of empty tensors, or one of another model.
    """
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ValueError(f"no adapter in {str(folder)!r}: it has no {file.name}")
    check_adapter_file(weights_file)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        name = json.loads(config_file.read_text()).get("base_model_name_or_path")
        raise ValueError(
            f"the adapter in {str(folder)!r} does not fit the model (made for {name}): {first_line(error)}"
        ) from None
    return adapted.merge_and_unload() if merge else adapted


def check_adapter_file(file: Path) -> None:
    """Refuse an adapter of empty tensors: what ZeRO-3 saves where nobody gathered the weights."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:  # type: ignore[no-untyped-call]
        empty = [name for name in tensors.keys() if 0 in tensors.get_slice(name).get_shape()]  # noqa: SIM118
    if empty:
        raise ValueError(f"{file}: {len(empty)} of its tensors are empty ({empty[0]})")
