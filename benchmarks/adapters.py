"""What an adapter costs: forward and backward of a language model with DoRA, peft's and ours, over LoRA's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import nn
from transformers import LlamaConfig, LlamaModel

from mme5core.adapters import add_adapter, weights_at_rest

WIDTH, NUM_LAYERS, NUM_CHUNKS, ROUNDS = 512, 4, 4, 3
SHAPES = ((2, 64), (8, 256))  # rows x tokens of one chunk
SIDES: dict[str, dict[str, Any]] = {
    "lora": {},
    "peft": {"use_dora": True},
    "ours": {"use_dora": True},
    "low_rank": {"use_dora": True, "dropout_on": "low_rank"},
}


def run(folder: Path, best_of: Callable[[dict[str, Callable[[], object]], int], dict[str, float]]) -> dict[str, object]:
    """For each chunk's shape: the DoRA of peft over ours (`peft_over_ours`, `peft_over_low_rank`), ours over LoRA."""
    found: dict[str, object] = {"dropout": 0.1, "width": WIDTH, "chunks_per_step": NUM_CHUNKS, "dtype": "float32"}
    for rows, tokens in SHAPES:
        models = {name: _model(name, kind) for name, kind in SIDES.items()}
        x_BSD = torch.randn(rows, tokens, WIDTH)
        gradients = {name: _step(model, x_BSD) for name, model in models.items()}
        difference = max(
            float((ours - peft).abs().max() / peft.abs().max())
            for ours, peft in zip(gradients["ours"], gradients["peft"], strict=True)
        )
        assert difference < 1e-4, f"the gradients of the two sides differ by {difference}"
        sides = {name: (lambda model=model, x_BSD=x_BSD: _step(model, x_BSD)) for name, model in models.items()}
        times = best_of(sides, ROUNDS)  # type: ignore[arg-type]
        found[f"{rows}x{tokens}"] = {
            "peft_over_ours": round(times["peft"] / times["ours"], 3),
            "peft_over_low_rank": round(times["peft"] / times["low_rank"], 3),
            "ours_over_lora": round(times["ours"] / times["lora"], 3),
            "low_rank_over_lora": round(times["low_rank"] / times["lora"], 3),
        }
    return found


def _model(name: str, kind: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        attn_implementation="eager",
    )
    model = add_adapter(
        LlamaModel(config), rank=8, alpha=64, dropout=0.1, train_embeddings=False,
        targets=["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"], **kind,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.02, generator=generator)
    if name == "peft":
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.lora_variant["default"] = DoraLinearVariant()
    return model.train()


def _step(model: nn.Module, x_BSD: torch.Tensor) -> list[torch.Tensor]:
    """The passes of one step with a cache, whose weights do not change."""
    model.zero_grad()
    with weights_at_rest(model):
        for chunk in range(NUM_CHUNKS):
            torch.manual_seed(chunk)
            with torch.no_grad():
                model(inputs_embeds=x_BSD, use_cache=False)
        for chunk in range(NUM_CHUNKS):
            torch.manual_seed(chunk)
            state_BSD = model(inputs_embeds=x_BSD, use_cache=False).last_hidden_state
            (state_BSD[..., : WIDTH // 2].square().sum() - state_BSD[..., WIDTH // 2 :].sum()).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
