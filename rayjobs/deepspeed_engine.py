"""DeepSpeed around the embedding module: its configuration, and its state in full."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def build(module: nn.Module, config: dict[str, Any]) -> Any:
    """A DeepSpeed engine over the module's trainable parameters.

    The process group is Ray's. Adapter weights are float32 and autocast rounds the products, so DeepSpeed's own
    bf16 mode, which would round the weights too, stays off.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not torch.cuda.is_available():
        # DeepSpeed would compile a C++ kernel for shared-memory collectives at first use: minutes, for what gloo does.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config={
            # Unused, since the loss sees whole batches, but DeepSpeed insists on it.
            "train_micro_batch_size_per_gpu": max(1, config["batch_size"] // config["num_workers"]),
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config["max_grad_norm"],
            "optimizer": {
                "type": "AdamW",
                "params": {
                    "lr": config["learning_rate"],
                    "weight_decay": config["weight_decay"],
                    "torch_adam": True,
                },
            },
            "zero_optimization": {
                "stage": config["zero_stage"],
                "overlap_comm": torch.cuda.is_available(),
                "contiguous_gradients": True,
                "reduce_bucket_size": 50_000_000,
                "allgather_bucket_size": 50_000_000,
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 30,
        },
        dist_init_required=False,
    )
    return engine


def create_moments(engine: Any, num_updates: int) -> None:
    """Give Adam its moments before the first update, so that stored ones can be put in their place.

    Args:
        num_updates: how many updates came before; Adam's bias correction depends on it.
    """
    zero = engine.optimizer
    for group in zero.optimizer.param_groups:
        for flat in group["params"]:
            zero.optimizer.state[flat] = {
                "step": torch.tensor(float(num_updates)),
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
    # DeepSpeed does this after its first step: it maps each parameter to its part of the flat moments.
    zero._lazy_init_hp_params_optimizer_state()


def moment_of(engine: Any) -> Callable[[nn.Parameter, str], Tensor]:
    """The full float32 weight or Adam moment of a parameter; every process must ask for the same one at once."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    def get(parameter: nn.Parameter, kind: str) -> Tensor:
        if kind == "weight":
            value = safe_get_full_fp32_param(parameter)
        else:
            value = safe_get_full_optimizer_state(parameter, kind)
        assert value is not None, f"DeepSpeed holds no {kind}"
        return value

    return get


def set_moment(engine: Any) -> Callable[[nn.Parameter, str, Tensor], None]:
    """The counterpart of `moment_of`."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    def put(parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        if kind == "weight":
            safe_set_full_fp32_param(parameter, value)
            parameter.data.copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    return put
