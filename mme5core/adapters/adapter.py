"""A fresh adapter on chosen layers, or full fine-tuning of the model's own weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from mme5core.adapters.dora import use_step_dora

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

    Raises:
        ValueError: targets that match no layer, or `train_embeddings` for a model without token embeddings.
    """
    embeddings = token_embeddings(model) if train_embeddings else None
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=resolve_targets(model, targets),
        modules_to_save=[embeddings] if embeddings else None,
        init_lora_weights="gaussian",
        use_dora=use_dora,
        use_rslora=rank_stabilised,
    )
    if dropout_on not in ("input", "low_rank"):
        raise ValueError(f"unknown dropout_on {dropout_on!r}; known: input, low_rank")
    dtype = next(model.parameters()).dtype
    adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    for name, module in adapted.named_modules():
        if embeddings and name == f"base_model.model.{embeddings}":
            # float32 weights, since bfloat16 would round small updates away; their output has the model's dtype.
            module.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    use_step_dora(adapted, whole_input=dropout_on == "input", is_fresh=True)
    return adapted  # type: ignore[return-value]


def token_embeddings(model: nn.Module) -> str:
    """The name of the module that embeds the tokens of a text.

    Raises:
        ValueError: transformers knows of none in this model.
    """
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    for part in (model, *(getattr(model, tower, None) for tower in TOWERS["language"])):
        try:
            name = names.get(part.get_input_embeddings())  # type: ignore[union-attr, operator]
        except (AttributeError, NotImplementedError):  # of a model with two towers nobody knows which is meant
            continue
        if name is not None and _tower(name) != "vision":
            return name
    raise ValueError(f"train_embeddings: {type(model).__name__} has no token embeddings that transformers can name")


def train_weights(model: nn.Module, *, targets: str | Sequence[str], train_embeddings: bool) -> list[str]:
    """Full fine-tuning: make some of the model's own weights trainable and freeze the others.

    Args:
        targets: "all" for every weight; else a tower's weights, or the linear layers that `resolve_targets` matches.
        train_embeddings: train the token embeddings too.

    Returns:
        The names of the trainable weights.

    Raises:
        ValueError: as `add_adapter`.
    """
    embeddings = token_embeddings(model) if train_embeddings else None
    chosen = set(resolve_targets(model, targets)) if targets != "all" else set()
    names = []
    for name, parameter in model.named_parameters():
        is_chosen = targets == "all" or name.rpartition(".")[0] in chosen or _tower(name) == targets
        parameter.requires_grad_(is_chosen or name == f"{embeddings}.weight")
        if parameter.requires_grad:
            names.append(name)
    return names


def _tower(name: str) -> str | None:
    parts = set(name.split("."))
    return next((tower for tower, modules in TOWERS.items() if parts & set(modules)), None)
