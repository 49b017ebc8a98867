"""LoRA on a base model: where it goes, and what a saved adapter must hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

TOWERS = {"language": ("language_model",), "vision": ("vision_model", "visual", "vision_tower")}


def resolve_targets(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers that `targets` means.

    Args:
        targets: "language", "vision", "all", or a list of name endings such as "q_proj".

    Raises:
        ValueError: nothing in the model is meant by it.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(targets, str):
        if targets not in (*TOWERS, "all"):
            raise ValueError(f"unknown targets {targets!r}; known: language, vision, all, or a list of name endings")
        towers = [part for name, parts in TOWERS.items() if targets in (name, "all") for part in parts]
        found = [name for name in linears if set(name.split(".")) & set(towers)]
    else:
        found = [name for name in linears if name.split(".")[-1] in targets or name.endswith(tuple(targets))]
    if not found:
        endings = sorted({name.split(".")[-1] for name in linears})
        raise ValueError(f"targets {targets!r} match no linear layer; there are {', '.join(endings)}")
    return found


def add_adapter(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | Sequence[str],
    train_embeddings: bool,
) -> PeftModel:
    """The model with a fresh LoRA adapter, its own weights frozen; adapter weights are float32.

    Args:
        alpha: the adapter's output is scaled by alpha / rank.
        train_embeddings: train the token embeddings too, as a full copy in the adapter.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=resolve_targets(model, targets),
        modules_to_save=["embed_tokens"] if train_embeddings else None,
        init_lora_weights="gaussian",
    )
    return get_peft_model(model, config)  # type: ignore[return-value, arg-type]


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
        first = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(f"the adapter in {str(folder)!r} does not fit the model (made for {name}): {first}") from None
    return adapted.merge_and_unload() if merge else adapted


def check_adapter_file(file: Path) -> None:
    """Refuse an adapter of empty tensors: what ZeRO-3 saves where nobody gathered the weights."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:  # type: ignore[no-untyped-call]
        empty = [name for name in tensors.keys() if 0 in tensors.get_slice(name).get_shape()]  # noqa: SIM118
    if empty:
        raise ValueError(f"{file}: {len(empty)} of its tensors are empty ({empty[0]})")
