"""A model from a folder or the hub, with its settings and its adapter: dtype, quantisation, device."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForImageTextToText, BitsAndBytesConfig

from mme5core.backbones import Backbone, load_backbone
from mme5core.backbones.loading import load_config
from mme5core.errors import first_line
from mme5core.hub import pinned, split_hub_id
from mme5core.model_folder import (
    adapters_of,
    beneath_of,
    check_model_files,
    find_base,
    model_identity,
    read_settings,
    stored_settings,
)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its adapter and its backbone.

    `settings` were stored beside it by `Encoder.save`. `base` is the model that its last adapter was trained on, which
    may have adapters too; without an adapter the checkpoint itself. `merged_adapter` is the folder of the last adapter
    if it was folded into the weights. `head` is the layer that makes logits of states, where it was asked for.
    """

    model: Any
    backbone: Backbone
    settings: dict[str, Any]
    base: str
    merged_adapter: Path | None
    head: Any = None


def load_model(
    path: str | os.PathLike[str],
    *,
    adapter: str | os.PathLike[str] | None,
    dtype: str,
    merge_adapter: bool,
    attention: str | None,
    remote_code: bool,
    quantize: str | None,
    with_head: bool = False,
) -> LoadedModel:
    """The model at `path`; the arguments and errors are those of `Encoder.load`.

    Only quantised weights are already on an accelerator; the others are on the CPU.

    Raises:
        ValueError: as `Encoder.load`.
    """
    check_model_files(path)
    base, adapters = find_base(path), adapters_of(path)
    beneath = base  # what the last adapter was trained on
    if adapter is not None:
        beneath = str(path) if adapters else base
        _check_base(adapter, beneath)
        adapters.append(Path(adapter))
    elif adapters:
        beneath = beneath_of(path) or base
    weights_dtype = _torch_dtype(dtype)
    pinned_base = pinned(base)  # all parts from one commit, whatever the hub's branch does meanwhile
    if adapter is not None:
        _check_commit(adapter, pinned_base)
    config = load_config(pinned_base, remote_code=remote_code)
    backbone = load_backbone(pinned_base, config, remote_code=remote_code)
    model, head = _load_weights(pinned_base, weights_dtype, attention, remote_code, quantize, with_head)
    if adapters:
        from mme5core.adapters import load_adapter  # imports peft, which most models do not need

        for folder in adapters[:-1]:
            model = load_adapter(model, folder, merge=True)
        model = load_adapter(model, adapters[-1], merge=merge_adapter)
    return LoadedModel(
        model,
        backbone,
        stored_settings(path, adapter),
        pinned_base if beneath == base else beneath,
        adapters[-1] if adapters and merge_adapter else None,
        head,
    )


def _check_base(adapter: str | os.PathLike[str], beneath: str) -> None:
    """
    Raises:
        ValueError: the adapter was trained on another model than the one at `beneath`.
    """
    if read_settings(adapter).get("base_identity") not in (None, model_identity(beneath)):
        raise ValueError(f"the adapter at {str(adapter)!r} was trained on another base than {beneath!r}")


def _check_commit(adapter: str | os.PathLike[str], base: str) -> None:
    """
    Raises:
        ValueError: the adapter was trained on another commit of this hub id.
    """
    settings, (name, commit) = read_settings(adapter), split_hub_id(base)
    trained_on = settings.get("base_commit")
    if settings.get("base") == name and None not in (commit, trained_on) and commit != trained_on:
        raise ValueError(
            f"the adapter at {str(adapter)!r} was trained on {name}@{trained_on}, and {name} is at {commit} now: "
            f"name the model {name}@{trained_on}"
        )


def check_finite(model: torch.nn.Module, path: str) -> None:
    """Refuse a model of which every vector would be NaN; one pass over the weights, on the device where they are.

    Raises:
        ValueError: naming the first weight that is NaN or infinite.
    """
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if not weight.is_floating_point() or bool(torch.isfinite(weight.sum(dtype=torch.float32))):
                continue
            if not bool(torch.isfinite(weight).all()):  # else the sum alone is too large
                raise ValueError(f"{name} of the model at {path!r} is NaN or infinite")


def default_device() -> torch.device:
    """The first accelerator, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _torch_dtype(dtype: str) -> torch.dtype | str:
    if dtype == "auto":
        return "auto"
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype):
        raise ValueError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return named


def _load_weights(
    base: str,
    dtype: torch.dtype | str,
    attention: str | None,
    remote_code: bool,
    quantize: str | None,
    with_head: bool,
) -> tuple[Any, Any]:
    """The base model, and its head where that is asked for."""
    name, revision = split_hub_id(base)
    kwargs = {"dtype": dtype, "attn_implementation": attention, "trust_remote_code": remote_code}
    if quantize is not None:
        kwargs |= _quantised(quantize)
    try:
        if not with_head:
            return AutoModel.from_pretrained(name, revision=revision, **kwargs), None
        whole = AutoModelForImageTextToText.from_pretrained(name, revision=revision, **kwargs)
        return whole.model, whole.get_output_embeddings()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the model at {base!r}: {first_line(error)}") from None


def _quantised(quantize: str) -> dict[str, Any]:
    """QLoRA's settings (arXiv 2305.14314): 4-bit NormalFloat, double quantisation, products in bfloat16."""
    if quantize != "nf4":
        raise ValueError(f"unknown quantize {quantize!r}; known: nf4")
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("quantize=nf4 needs a GPU and the package bitsandbytes: pip install bitsandbytes")
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "device_map": {"": torch.cuda.current_device()},
    }
