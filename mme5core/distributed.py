"""Collective calls of losses and training; without a process group, one process is a world of size 1."""

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
    """[B, ...] of all processes in rank order, as [world x B, ...]; gradients flow back to each row's process.

    Raises:
        RuntimeError: the processes pass different numbers of rows.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _AllGather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The tensor, summed over processes in place; it must have the same shape on every process."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def on_any_process(*flags: bool, device: str) -> list[bool]:
    """Each flag, True if it is so on any process: none may leave while others wait for it in a collective call."""
    total = sum_over_processes(torch.tensor([float(flag) for flag in flags], device=device))
    return [bool(count > 0) for count in total.tolist()]


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        pieces = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(pieces, tensor.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The losses of all processes depend on this process's rows, so that their gradients are summed.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]
