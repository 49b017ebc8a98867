"""Adapters made elsewhere: applied tensor by tensor, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mme5core import Content, Encoder
from mme5core.adapters import add_adapter
from tests.core.backbones.families import VLMS
from tests.core.contents import picture

CONTENTS = [Content("a cat"), Content("a dog on a red sofa", picture(1))]
WEIGHTS = "adapter_model.safetensors"


def made_by_peft(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter as others publish it: plain peft on the class with a language-model head; beside it, merged."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | settings))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    shutil.copytree(base, folder / "merged")
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    return folder / "adapter"


def rename(adapter: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    save_file({change(key): tensor for key, tensor in tensors.items()}, adapter / WEIGHTS)


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(ValueError) as caught:
        Encoder.load(base, adapter=adapter)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one: Encoder, other: Encoder) -> bool:
    return bool(np.abs(one.embed(CONTENTS) - other.embed(CONTENTS)).max() < 1e-5)


@pytest.mark.parametrize("family", sorted(VLMS))
def test_an_adapter_made_on_the_class_with_a_head_is_applied(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoint(family)
    adapter = made_by_peft(base, tmp_path)
    assert next(iter(load_file(adapter / WEIGHTS))).startswith("base_model.model.model.")
    applied = Encoder.load(base, adapter=adapter)
    assert same(applied, Encoder.load(tmp_path / "merged"))
    assert not same(applied, Encoder.load(base))
    assert same(Encoder.load(base, adapter=adapter, merge_adapter=False), applied)


def test_patterns_of_ranks_and_scales_and_whole_modules_go_where_they_are_meant(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoint("qwen2_vl")
    adapter = made_by_peft(
        base,
        tmp_path,
        target_modules=r"model\.language_model\.layers\..*\.(q|v)_proj|lm_head",
        rank_pattern={r"model.language_model.layers.0.self_attn.q_proj": 2},
        alpha_pattern={r"language_model.layers.1.self_attn.q_proj": 64},
        modules_to_save=["embed_tokens"],
    )
    assert same(Encoder.load(base, adapter=adapter), Encoder.load(tmp_path / "merged"))


@pytest.mark.parametrize(
    ("family", "old", "new"),
    [
        ("qwen2_vl", "model.language_model.", "model."),
        ("mllama", "model.language_model.", "language_model.model."),
        ("llava_next", "model.vision_tower.", "vision_tower.vision_model."),
    ],
)
def test_names_of_earlier_versions_are_understood(
    family: str, old: str, new: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    base = checkpoint(family)
    adapter = made_by_peft(base, tmp_path)
    rename(adapter, lambda key: key.replace(f"base_model.model.{old}", f"base_model.model.{new}"))
    assert same(Encoder.load(base, adapter=adapter), Encoder.load(tmp_path / "merged"))


def test_an_adapter_with_a_tensor_that_has_no_place_is_refused_by_it(base: Path, tmp_path: Path) -> None:
    adapter = made_by_peft(base, tmp_path)
    rename(adapter, lambda key: key.replace("language_model.layers.0.", "language_model.layers.77."))
    message = refusal(base, adapter)
    assert "2 of its" in message and "layers.77.self_attn.q_proj.lora_A.weight" in message


def test_an_adapter_that_lacks_half_of_a_pair_is_refused_by_it(base: Path, tmp_path: Path) -> None:
    adapter = made_by_peft(base, tmp_path)
    tensors = load_file(adapter / WEIGHTS)
    gone = next(key for key in tensors if "lora_B" in key)
    save_file({key: tensor for key, tensor in tensors.items() if key != gone}, adapter / WEIGHTS)
    message = refusal(base, adapter)
    assert "does not fit the model" in message and "lora_B.weight is in the model alone" in message


def test_an_adapter_of_another_family_or_size_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    of_qwen = made_by_peft(checkpoint("qwen2_vl"), tmp_path / "qwen", target_modules=["qkv"])
    assert "does not fit the model" in refusal(checkpoint("clip"), of_qwen)
    assert "does not fit the model" in refusal(checkpoint("mllama"), of_qwen)
    wide = made_by_peft(checkpoint("qwen2_vl"), tmp_path / "wide")
    config = json.loads((wide / "adapter_config.json").read_text())
    (wide / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
    assert "lora_A.weight has shape (4, 64), in the model (5, 64)" in refusal(checkpoint("qwen2_vl"), wide)


def test_an_adapter_with_nan_or_a_rotten_file_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    adapter = made_by_peft(base, tmp_path)
    tensors = load_file(adapter / WEIGHTS)
    name = sorted(tensors)[3]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    assert f"{name} holds NaN" in refusal(base, adapter)
    (adapter / WEIGHTS).write_bytes(bytes(64))
    assert f"{WEIGHTS}: cannot be read" in refusal(base, adapter)


def test_a_dora_row_of_length_0_travels_and_other_readers_see_the_published_formula(base: Path, tmp_path: Path) -> None:
    """`merged` is made of the saved files by the formula, `m (W + s B A) / |W + s B A|`."""
    zeroed = tmp_path / "base"
    shutil.copytree(base, zeroed)
    weights = load_file(zeroed / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.0.mlp.up_proj.weight"))
    weights[name][1] = 0
    save_file(weights, zeroed / "model.safetensors", {"format": "pt"})
    encoder = Encoder.load(zeroed, device="cpu")
    settings: dict[str, Any] = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["up_proj"], "use_dora": True}
    encoder.module.model = add_adapter(encoder.module.model, train_embeddings=False, **settings)
    assert np.isfinite(encoder.embed(CONTENTS)).all()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in encoder.module.model.named_parameters():
            if "lora_B" in key or "magnitude" in key:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    encoder.module.eval()
    expected = encoder.embed(CONTENTS)
    encoder.save(tmp_path / "model")
    assert np.abs(encoder.embed(CONTENTS) - expected).max() == 0  # saving leaves the weights as they were
    for merge in (True, False):
        loaded = Encoder.load(tmp_path / "model", merge_adapter=merge)
        assert np.abs(loaded.embed(CONTENTS) - expected).max() < 1e-5
    saved = load_file(tmp_path / "model" / WEIGHTS)
    stem = next(key for key in saved if key.endswith("layers.0.mlp.up_proj.lora_A.weight")).removesuffix(
        "lora_A.weight"
    )
    whole = weights[name] + 2.0 * saved[f"{stem}lora_B.weight"] @ saved[f"{stem}lora_A.weight"]
    magnitude = saved[f"{stem}lora_magnitude_vector"]
    formula = magnitude[1] * whole[1] / whole[1].norm()
    encoder.save(tmp_path / "whole", include_base=True)
    merged = load_file(tmp_path / "whole" / "model.safetensors")
    ours = next(tensor for key, tensor in merged.items() if key.endswith("layers.0.mlp.up_proj.weight"))
    torch.testing.assert_close(ours[1], formula)
