"""The gradient of a contrastive batch of any size, exactly, in chunks (GradCache, arXiv 2101.06983).

Shapes: N contents of a whole batch (queries, positives, negatives), D width.

The loss depends on all N vectors at once, but its gradient reaches the weights through each vector's forward pass
separately. Therefore: (1) embed the chunks; (2) gather all vectors and compute the loss's gradient by them; (3)
backpropagate each chunk's part of that gradient through the chunk. With a cache, step 1 keeps no activations and
step 3 embeds again; without, the activations of this process's chunks stay in memory. Both give the same numbers, on
any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mme5core.distributed import rank, sum_over_processes, world_size
from mme5core.encoder.prepare import PreparedBatch

ShareOfLoss = Callable[[Tensor, slice], Tensor]
"""Maps (vectors [N, D], rows of the batch) to the share of these rows of the loss; the shares add up to the loss."""


class Engine(Protocol):
    """Wraps the module for training: DeepSpeed's engine or `PlainEngine`.

    The gradient of a step is the mean over processes of the gradients that each has computed. A step whose gradient is
    not finite changes no weight (`was_skipped`).
    """

    optimizer: Any

    def __call__(self, batches: list[PreparedBatch]) -> Tensor: ...
    def backward(self, loss: Tensor) -> Any: ...
    def step(self) -> Any: ...
    def get_global_grad_norm(self) -> Any: ...
    def coalesce_grad_reduction(self) -> AbstractContextManager[Any]:
        """Within it, the gradients of all backward passes are summed, and reduced over processes once at the end."""
        ...


class PlainEngine:
    """One optimizer; several processes average their gradients in one reduction per step."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, *, max_grad_norm: float) -> None:
        self.module, self.optimizer, self._max_grad_norm = module, optimizer, max_grad_norm
        self._grad_norm = 0.0
        self.overflow = False
        self.num_reductions = 0

    def __call__(self, batches: list[PreparedBatch]) -> Tensor:
        vectors: Tensor = self.module(batches)
        return vectors

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def coalesce_grad_reduction(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def step(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._reduce(parameters)
        self._grad_norm = float(nn.utils.clip_grad_norm_(parameters, self._max_grad_norm))
        self.overflow = not math.isfinite(self._grad_norm)
        if not self.overflow:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def get_global_grad_norm(self) -> float:
        return self._grad_norm

    def _reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients over processes, as torch's DDP does, but once for all backward passes of a step.

        Weights without a gradient get zeros: Adam would otherwise not count the step in their bias correction, as
        DeepSpeed's flat groups do.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if world_size() == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = sum_over_processes(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
        self.num_reductions += 1
        for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)


def was_skipped(engine: Engine) -> bool:
    """Whether the engine's last step changed no weight, since the gradient was not finite; alike on all processes."""
    return bool(getattr(engine, "overflow", False) or getattr(engine.optimizer, "overflow", False))


def contrastive_backward(
    engine: Engine,
    batches: Sequence[PreparedBatch],
    share_of_loss: ShareOfLoss,
    *,
    num_contents: int,
    num_rows: int,
    width: int,
    cache: bool,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Accumulate the gradient of a whole batch's loss in the engine; returns the loss.

    Args:
        batches: this process's chunks; `rows` are places among the contents of the whole batch.
        share_of_loss: may depend on further parameters; the caller must sum their gradients over processes.
        num_contents: N, over all processes.
        num_rows: queries of the whole batch; each process computes the share of an equal part of them.
        cache: keep no activations, and embed every chunk a second time.
    """
    held: Tensor | None = None
    if cache:
        with torch.no_grad(), autocast():
            vectors = [engine([batch]) for batch in batches]  # step 1
    else:
        with autocast():
            held = engine(list(batches))
        vectors = list(held.split([len(batch.rows) for batch in batches]))
    vector_ND = _gather(batches, vectors, num_contents, width).requires_grad_()
    loss, gradient_ND = _gradient(vector_ND, share_of_loss, num_rows)  # step 2
    # The engine averages over processes, but the chunks of all processes must be summed.
    scale = float(world_size())
    with engine.coalesce_grad_reduction():
        if held is not None and held.requires_grad:
            weight_N = torch.cat([held.new_full((len(batch.rows), 1), batch.weight) for batch in batches])
            rows = [row for batch in batches for row in batch.rows]
            engine.backward((held * (gradient_ND[rows] * weight_N)).sum() * scale)
        elif held is None:
            for batch in batches:  # step 3
                with autocast():
                    again = engine([batch])
                if again.requires_grad:  # False for texts if only the vision tower trains
                    engine.backward((again * gradient_ND[batch.rows]).sum() * (scale * batch.weight))
    return loss


def _gather(batches: Sequence[PreparedBatch], vectors: Sequence[Tensor], num_contents: int, width: int) -> Tensor:
    """The vectors of all processes at their places in the batch, [N, D] float32."""
    device = vectors[0].device if vectors else torch.device("cpu")
    vector_ND = torch.zeros(num_contents, width, device=device)
    for batch, part in zip(batches, vectors, strict=True):
        if batch.weight:
            vector_ND[batch.rows] = part.detach().float()
    return sum_over_processes(vector_ND)


def _gradient(vector_ND: Tensor, share_of_loss: ShareOfLoss, num_rows: int) -> tuple[float, Tensor]:
    """The loss of the batch and its gradient; each process computes the share of its part of the rows."""
    mine = slice(rank() * num_rows // world_size(), (rank() + 1) * num_rows // world_size())
    share = share_of_loss(vector_ND, mine)
    if share.requires_grad:
        share.backward()  # type: ignore[no-untyped-call]
    gradient_ND = vector_ND.grad if vector_ND.grad is not None else torch.zeros_like(vector_ND)
    loss = sum_over_processes(share.detach().double().reshape(1))
    return float(loss.item()), sum_over_processes(gradient_ND)
