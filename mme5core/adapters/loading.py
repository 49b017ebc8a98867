"""An adapter from its folder onto a model: every tensor of it applied, or the adapter refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mme5core.adapters.dora import use_step_dora
from mme5core.errors import first_line

PREFIX = "base_model.model."
_LORA = re.compile(r"\.lora_")
_IN_A_MODULE = re.compile(r"\.(?:lora_|ia3_|hada_|lokr_|oft_|boft_|token_adapter\.)|\.[^.]+$")


def load_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """The model with the adapter of `folder`, folded into its weights if `merge`.

    An adapter that was made on a class with a language-model head, or by an earlier transformers, calls the same
    modules by other names: its keys are renamed to the model's. Tensors of the head itself are left out, since no
    vector depends on it.

    Raises:
        ValueError: the folder holds no adapter, one with empty tensors or NaN, or one of another model.
    """
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise ValueError(f"no adapter in {str(folder)!r}: it has no {file.name}")
    check_adapter_file(weights_file)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config_file}: {first_line(error)}") from None
    try:
        adapted = _with_adapter(model, config, load_file(str(weights_file)))
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        name = config.base_model_name_or_path
        raise ValueError(
            f"the adapter in {str(folder)!r} does not fit the model (made for {name}): {first_line(error)}"
        ) from None
    use_step_dora(adapted, whole_input=True, is_fresh=False)
    return adapted.merge_and_unload() if merge else adapted


def check_adapter_file(file: Path) -> None:
    """Refuse an adapter with empty tensors, as ZeRO-3 leaves them if the weights were not gathered before saving, and
    one with NaN or infinity.

    Raises:
        ValueError: naming the first such tensor, or the file if it cannot be read.
    """
    try:
        with safe_open(str(file), framework="pt") as tensors:  # type: ignore[no-untyped-call]
            names = list(tensors.keys())
            empty = [name for name in names if 0 in tensors.get_slice(name).get_shape()]
            if empty:
                raise ValueError(f"{file}: {len(empty)} of its tensors are empty ({empty[0]})")
            for name in names:
                if not bool(torch.isfinite(tensors.get_tensor(name)).all()):
                    raise ValueError(f"{file}: {name} holds NaN or infinity")
    except SafetensorError as error:
        raise ValueError(f"{file}: cannot be read ({first_line(error)})") from None


def _with_adapter(model: Any, config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """
    Raises:
        ValueError, RuntimeError, KeyError: a tensor that the model has no place for, or a place without a tensor.
    """
    names = _names_in(model, list(tensors))
    if config.peft_type == "LORA":
        _aim(config, names)
    config.inference_mode = True
    adapted = PeftModel(model, config)
    state = {names[key]: tensor for key, tensor in tensors.items() if key in names}
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if odd := sorted(state.keys() ^ expected.keys()):
        where = "the adapter" if odd[0] in state else "the model"
        raise ValueError(f"{len(odd)} tensors are in only one of the two; {odd[0]} is in {where} alone")
    for key, tensor in state.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(f"{key} has shape {tuple(tensor.shape)}, in the model {tuple(expected[key].shape)}")
    outcome: Any = set_peft_model_state_dict(adapted, state)
    if outcome.unexpected_keys:
        raise ValueError(f"no place for {outcome.unexpected_keys[0]}")
    return adapted


def _names_in(model: Any, keys: list[str]) -> dict[str, str]:
    """The adapter's keys, each with what it is called in this model; those of a language-model head are left out.

    Raises:
        ValueError: the model lacks a module that the adapter changes.
    """
    modules = {name for name, _ in model.named_modules()}
    names, unknown = {}, []
    for key in keys:
        path, rest = _split(key.removeprefix(PREFIX))
        if path.rpartition(".")[2] == "lm_head":
            continue
        name = next((spelling for spelling in _spellings(path) if spelling in modules), None)
        if name is None:
            unknown.append(key)
        else:
            names[key] = f"{PREFIX}{name}{rest}"
    if unknown:
        raise ValueError(
            f"{len(unknown)} of its {len(keys)} tensors have no place in the model, the first {unknown[0]}"
        )
    return names


def _split(key: str) -> tuple[str, str]:
    """A key's module, and what follows.

    >>> _split("layers.0.q_proj.lora_A.weight"), _split("embed_tokens.weight")
    (('layers.0.q_proj', '.lora_A.weight'), ('embed_tokens', '.weight'))
    """
    match = _IN_A_MODULE.search(key)
    start = match.start() if match else len(key)
    return key[:start], key[start:]


def _spellings(path: str) -> Iterator[str]:
    """What a module may be called in the model without a head, by the name that other classes and versions give it.

    >>> list(_spellings("model.language_model.norm"))[1], list(_spellings("language_model.model.norm"))[-2]
    ('language_model.norm', 'language_model.norm')
    """
    yield path
    bare = path.removeprefix("model.")
    yield bare
    for old, new in (("language_model.model.", "language_model."), ("vision_tower.vision_model.", "vision_tower.")):
        if bare.startswith(old):
            yield new + bare.removeprefix(old)
    yield f"language_model.{bare}"  # Qwen2-VL before transformers 4.52


def _aim(config: Any, names: Mapping[str, str]) -> None:
    """Make a LoRA configuration speak of this model's modules: exactly those of the file."""
    targets: dict[str, str] = {}
    saved = set()
    for key, name in names.items():
        module = _split(name.removeprefix(PREFIX))[0]
        if _LORA.search(key):
            targets[module] = _split(key.removeprefix(PREFIX))[0]
        else:
            saved |= {_saved_module(module, part) for part in config.modules_to_save or ()}
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = getattr(config, field) or {}
        by_key = {module: get_pattern_key(list(pattern), original) for module, original in targets.items()}
        setattr(config, field, {module: pattern[key] for module, key in by_key.items() if key in pattern})
    if targets:
        config.target_modules = sorted(targets)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.modules_to_save = sorted(saved - {""}) or None


def _saved_module(module: str, part: str) -> str:
    """The module that `modules_to_save` calls `part`, if `module` is that one or lies in it; else empty.

    >>> _saved_module("text.embeddings.tokens", "embeddings"), _saved_module("text.norm", "embeddings")
    ('text.embeddings', '')
    """
    match = re.match(rf"(?:.*\.)?{re.escape(part.rpartition('.')[2])}(?=\.|$)", module)
    return match[0] if match else ""
