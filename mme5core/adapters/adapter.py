"""Adding and loading an adapter, choosing its layers, and full fine-tuning of the model's own weights."""

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
"""The name endings of mmE5's released recipe. On Llama-3.2-Vision they match the attention of text and vision tower and
the last matrix of the text's MLPs; on Qwen2-VL they match the text tower only, which is a different adapter."""


def resolve_targets(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers that `targets` matches.

    Args:
        targets: "language", "vision", "all" (both towers), "mme5", a list of name endings such as "q_proj", or a
            regular expression to be searched in a layer's full name.

    Raises:
        ValueError: it matches no layer, or is not a valid regular expression.
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if targets == "mme5":
        targets = MME5
    if not isinstance(targets, str):
        endings = tuple(targets)
        matched = [name for name in linears if name.split(".")[-1] in endings or name.endswith(endings)]
    elif targets in (*TOWERS, "all"):
        matched = [name for name in linears if _tower(name) in ((targets,) if targets != "all" else tuple(TOWERS))]
    else:
        try:
            matched = [name for name in linears if re.search(targets, name)]
        except re.error as error:
            raise ValueError(f"targets {targets!r} is no regular expression: {error}") from None
    if not matched:
        there = sorted({name.split(".")[-1] for name in linears})
        raise ValueError(
            f"targets {targets!r} match no linear layer; known: {', '.join(TOWERS)}, all, mme5, or names of layers, "
            f"which end in {', '.join(there)}"
        )
    return matched


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
        use_dora: learn the length of each row of the adapted matrix separately from its direction (arXiv 2402.09353).
        dropout_on: where a DoRA layer applies dropout: "input", as published, to the input of base and adapter; or
            "low_rank", as in LoRA, to the adapter's input only, which saves a second product with the base weight.
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
            # float32 weights, since bfloat16 would round small updates away; their output has the model's dtype.
            module.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    use_step_dora(adapted, whole_input=dropout_on == "input")
    return adapted  # type: ignore[return-value]


def train_weights(model: nn.Module, *, targets: str | Sequence[str], train_embeddings: bool) -> list[str]:
    """Full fine-tuning: make some of the model's own weights trainable and freeze the others.

    Args:
        targets: "all" for every weight; else a tower's weights, or the linear layers that `resolve_targets` matches.
        train_embeddings: train the token embeddings too.

    Returns:
        The names of the trainable weights.
    """
    chosen = set(resolve_targets(model, targets)) if targets != "all" else set()
    names = []
    for name, parameter in model.named_parameters():
        is_chosen = targets == "all" or name.rpartition(".")[0] in chosen or _tower(name) == targets
        parameter.requires_grad_(is_chosen or (train_embeddings and "embed_tokens" in name))
        if parameter.requires_grad:
            names.append(name)
    return names


def _tower(name: str) -> str | None:
    parts = set(name.split("."))
    return next((tower for tower, modules in TOWERS.items() if parts & set(modules)), None)


def load_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """The model with the adapter of `folder`, folded into its weights if `merge`.

    Raises:
        ValueError: the folder holds no adapter, one with empty tensors, or one of another model.
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
    """Refuse an adapter with empty tensors, as ZeRO-3 leaves them if the weights were not gathered before saving.

    Raises:
        ValueError: a tensor of `file` is empty.
    """
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:  # type: ignore[no-untyped-call]
        empty = [name for name in tensors.keys() if 0 in tensors.get_slice(name).get_shape()]  # noqa: SIM118
    if empty:
        raise ValueError(f"{file}: {len(empty)} of its tensors are empty ({empty[0]})")
