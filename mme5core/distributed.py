"""What the losses and the training need of a process group; one process is a world of size 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """[B, ...] of every process, in rank order, as [world x B, ...]; gradients flow back to where rows came from.

    Raises:
        RuntimeError: the processes hold different numbers of rows.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _AllGather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The tensor, summed over processes in place; every process must hold one of the same shape."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        pieces = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(pieces, tensor.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every process's loss depends on this process's rows: their gradients add up.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]
