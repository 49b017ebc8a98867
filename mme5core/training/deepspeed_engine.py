"""DeepSpeed around the embedding module: its configuration, and its state in full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mme5core.distributed import rank


def build(
    module: nn.Module,
    *,
    zero_stage: int,
    max_grad_norm: float,
    weight_decay: float,
    persistence_threshold: int = 100_000,
) -> Any:
    """A DeepSpeed engine over the module's trainable parameters.

    The process group is Ray's. Adapter weights are float32 and autocast rounds the products, so DeepSpeed's own
    bf16 mode, which would round the weights too, stays off.

    Args:
        persistence_threshold: weights of fewer numbers are not sharded by ZeRO-3.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not torch.cuda.is_available():
        # DeepSpeed would compile a C++ kernel for shared-memory collectives at first use: minutes, for what gloo does.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = _config(
        zero_stage=zero_stage,
        max_grad_norm=max_grad_norm,
        weight_decay=weight_decay,
        persistence_threshold=persistence_threshold,
    )
    if zero_stage == 3:
        _shard(module, config)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config=config,
        dist_init_required=False,
    )
    if zero_stage == 3:
        _count_updates(engine, 0)
        _forget_old_gradients(engine)
    return engine


def _config(
    *, zero_stage: int, max_grad_norm: float, weight_decay: float, persistence_threshold: int
) -> dict[str, Any]:
    return {
        # Unused, since the loss sees whole batches, but DeepSpeed insists on it.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                # `fit` sets the rate of every step; ZeRO-3 takes a step of its own when it is built.
                "lr": 0.0,
                "weight_decay": weight_decay,
                "torch_adam": True,
            },
        },
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": persistence_threshold,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }


def _shard(module: nn.Module, config: dict[str, Any]) -> None:
    """Shard the weights of a module in host memory onto the accelerators, one after the other.

    Left to itself, DeepSpeed would first move the whole module to the accelerator, which may not hold it.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.zero.Init(module=module, config_dict_or_path=config)
    device = torch.device(get_accelerator().current_device_name())
    for parameter in module.parameters():
        if parameter.device != device:  # what is left of it is empty, or too small to be sharded
            parameter.data = parameter.data.to(device)
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = buffer.to(device)


class ShardedMoments:
    """Weights and Adam's moments of a DeepSpeed engine, gathered from its shards (`checkpoint.Moments`)."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def create(self, num_updates: int) -> None:
        zero = self._engine.optimizer
        if self._engine.zero_optimization_stage() == 3:
            _count_updates(self._engine, num_updates)
            return
        for group in zero.optimizer.param_groups:
            for flat in group["params"]:
                zero.optimizer.state[flat] = {
                    "step": torch.tensor(float(num_updates)),
                    "exp_avg": torch.zeros_like(flat),
                    "exp_avg_sq": torch.zeros_like(flat),
                }
        # DeepSpeed does this after its first step: it maps each parameter to its part of the flat moments.
        zero._lazy_init_hp_params_optimizer_state()

    def get(self, parameter: nn.Parameter, kind: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if kind == "weight":
            tensor = safe_get_full_fp32_param(parameter)
        else:
            tensor = safe_get_full_optimizer_state(parameter, kind)
        assert tensor is not None, f"DeepSpeed holds no {kind}"
        return tensor

    def put(self, parameter: nn.Parameter, kind: str, tensor: Tensor) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if kind == "weight":
            safe_set_full_fp32_param(parameter, tensor)
            # That sets the optimizer's copy. The model's own, or its shard, would keep the old numbers until the next
            # update.
            if not hasattr(parameter, "ds_id"):
                parameter.data.copy_(tensor)
                return
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if rank() == 0:
                    parameter.data.copy_(tensor)
        else:
            safe_set_full_optimizer_state(parameter, tensor, kind)


def _count_updates(engine: Any, num_updates: int) -> None:
    """Tell Adam how many updates came before. ZeRO-3 made its moments by an update of its own, on no gradient, which
    would count: the first real update would be corrected as the second. Of a version that makes none, they are made."""
    for flat in engine.optimizer.fp32_partitioned_groups_flat:
        state = engine.optimizer.optimizer.state[flat]
        for kind in ("exp_avg", "exp_avg_sq"):
            if kind not in state:
                state[kind] = torch.zeros_like(flat)
        state["step"] = torch.as_tensor(float(num_updates))


def _forget_old_gradients(engine: Any) -> None:
    """ZeRO-3 keeps a weight's gradient of the step before where a step gives it none, as a step of texts gives none to
    what only pictures use: without this the optimizer would apply it again."""
    coalesce = engine.coalesce_grad_reduction

    def from_zero() -> Any:
        engine.optimizer.grad_partitions_flat_buffer.zero_()
        return coalesce()

    engine.coalesce_grad_reduction = from_zero


@contextmanager
def gathered(module: nn.Module, *, frozen_too: bool) -> Iterator[None]:
    """Within it every process holds the module's trainable weights whole, or all of them, also under ZeRO-3."""
    sharded = [p for p in module.parameters() if hasattr(p, "ds_id") and (frozen_too or p.requires_grad)]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield
