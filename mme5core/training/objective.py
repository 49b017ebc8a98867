"""The loss of a training run, with its temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mme5core.losses import Divergence, Margin, Negatives, distillation, info_nce, matryoshka, soft_label_kl

Kind = Literal["info_nce", "soft_label_kl", "distillation"]
TEMPERATURES = "temperatures/"
KINDS: tuple[Kind, ...] = ("info_nce", "soft_label_kl", "distillation")


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of a batch's rows: document ids [B] and [B, K], scores [B, 1 + K]."""

    positive_ids: Tensor | None = None
    negative_ids: Tensor | None = None
    scores: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss with its settings, which `losses` documents.

    Args:
        in_batch_weight: of InfoNCE over the batch, which is added to soft labels and distillation. These compare a
            query with its own candidates only; U-MARVEL found that hard negatives alone train badly.

    Raises:
        ValueError: an unknown kind.
    """

    temperature: float
    kind: Kind = "info_nce"
    negatives: Negatives = "own"
    symmetric: bool = False
    hardness: float = 0.0
    margin: Margin | None = None
    margin_spares_own: bool = False
    matryoshka_dims: tuple[int, ...] = ()
    divergence: Divergence = "symmetric_kl"
    eps: float = 1e-8
    in_batch_weight: float = 0.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown loss {self.kind!r}; known: {sorted(KINDS)}")

    @property
    def needs_positive_ids(self) -> bool:
        """Whether columns may repeat a row's positive, and must be masked: a batch of few labels repeats them."""
        return self.has_in_batch

    @property
    def has_in_batch(self) -> bool:
        """Whether documents of other rows are negatives."""
        return self.kind == "info_nce" or self.in_batch_weight > 0

    @property
    def needs_scores(self) -> bool:
        """Whether samples must bring the scores of a judge or a reranker."""
        return self.kind != "info_nce"

    @property
    def needs_negative_ids(self) -> bool:
        """Whether other rows' hard negatives are columns, which may repeat a row's positive too.

        No row has its positive among its own hard negatives.
        """
        return self.has_in_batch and self.negatives == "all"

    def share(
        self,
        query_BD: Tensor,
        positive_BD: Tensor,
        negative_BKD: Tensor | None,
        labels: Labels,
        *,
        rows: slice,
        temperature: float | Tensor | None = None,
    ) -> Tensor:
        """The share of some rows of the loss of a whole batch."""
        divisor = self.temperature if temperature is None else temperature

        def loss(query_BD: Tensor, positive_BD: Tensor, negative_BKD: Tensor | None) -> Tensor:
            if self.needs_scores:
                soft = self._own_candidates(query_BD, positive_BD, negative_BKD, labels, divisor, rows)
                if not self.in_batch_weight:
                    return soft
                return soft + self.in_batch_weight * in_batch(query_BD, positive_BD, negative_BKD)
            return in_batch(query_BD, positive_BD, negative_BKD)

        def in_batch(query_BD: Tensor, positive_BD: Tensor, negative_BKD: Tensor | None) -> Tensor:
            return info_nce(
                query_BD,
                positive_BD,
                negative_BKD,
                temperature=divisor,
                negatives=self.negatives,
                symmetric=self.symmetric,
                hardness=self.hardness,
                positive_ids=labels.positive_ids,
                negative_ids=labels.negative_ids,
                margin=self.margin,
                margin_spares_own=self.margin_spares_own,
                rows=rows,
            )

        if not self.matryoshka_dims:
            return loss(query_BD, positive_BD, negative_BKD)
        return matryoshka(loss, query_BD, positive_BD, negative_BKD, dims=self.matryoshka_dims)

    def _own_candidates(
        self,
        query_BD: Tensor,
        positive_BD: Tensor,
        negative_BKD: Tensor | None,
        labels: Labels,
        temperature: float | Tensor,
        rows: slice,
    ) -> Tensor:
        if negative_BKD is None or labels.scores is None:
            raise ValueError(f"loss {self.kind} needs hard negatives with scores")
        candidate_BCD = torch.cat([positive_BD[:, None], negative_BKD], dim=1)
        if self.kind == "distillation":
            return distillation(
                query_BD,
                candidate_BCD,
                log_odds(labels.scores),
                temperature=temperature,
                teacher_temperature=self.teacher_temperature,
                symmetric=self.symmetric,
                rows=rows,
            )
        return soft_label_kl(
            query_BD,
            candidate_BCD,
            labels.scores,
            temperature=temperature,
            eps=self.eps,
            divergence=self.divergence,
            rows=rows,
        )


def log_odds(share: Tensor) -> Tensor:
    """Of shares in [0, 1], as samples store a reranker's scores; those of 0 and 1 stay finite.

    >>> log_odds(torch.tensor([0.5, 0.75])).exp().tolist()
    [1.0, 3.0]
    """
    smallest = torch.finfo(torch.float32).eps
    return torch.logit(share.double().clamp(smallest, 1 - smallest)).to(share.dtype)


class TaskTemperatures(nn.Module):
    """One learnable temperature for each task, stored as its logarithm (CLIP) and kept within bounds.

    The temperatures are the same on every process and have an optimizer of their own, outside of the engine.
    """

    LOWEST, HIGHEST = 0.005, 1.0

    def __init__(self, tasks: Sequence[str], initial: float, *, learning_rate: float) -> None:
        super().__init__()
        if not self.LOWEST <= initial <= self.HIGHEST:
            raise ValueError(
                f"a learnable temperature must start between {self.LOWEST} and {self.HIGHEST}, got {initial}"
            )
        self.tasks = sorted(set(tasks))
        self.logarithm = nn.Parameter(torch.full((len(self.tasks),), math.log(initial)))
        self.optimizer = torch.optim.Adam([self.logarithm], lr=learning_rate)

    def forward(self, tasks: Sequence[str]) -> Tensor:
        """The temperature of each row, [B]."""
        places = torch.tensor([self.tasks.index(task) for task in tasks], device=self.logarithm.device)
        return self.logarithm.exp()[places]

    def step(self) -> None:
        """Update by the gradients, then clamp to the bounds."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.logarithm.clamp_(math.log(self.LOWEST), math.log(self.HIGHEST))

    def by_task(self) -> dict[str, float]:
        temperatures = self.logarithm.detach().exp().tolist()
        return dict(zip(self.tasks, temperatures, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Logarithms and moments, as a checkpoint stores them."""
        state = self.optimizer.state.get(self.logarithm) or {}
        zeros = torch.zeros_like(self.logarithm)
        kinds = {"weight": self.logarithm, "exp_avg": state.get("exp_avg", zeros)}
        kinds["exp_avg_sq"] = state.get("exp_avg_sq", zeros)
        return {f"{TEMPERATURES}{kind}": tensor.detach().clone() for kind, tensor in kinds.items()}

    def load_tensors(self, tensors: dict[str, Tensor], *, num_updates: int) -> None:
        """Restore the state that `tensors` returned, and remove it from the checkpoint's `tensors`.

        Raises:
            ValueError: the checkpoint has no temperatures, or those of other tasks.
        """
        stored = {kind: tensors.pop(f"{TEMPERATURES}{kind}", None) for kind in ("weight", "exp_avg", "exp_avg_sq")}
        for tensor in stored.values():
            if tensor is None or tensor.shape != self.logarithm.shape:
                raise ValueError(f"the checkpoint has no temperatures for the tasks {self.tasks}")
        with torch.no_grad():
            self.logarithm.copy_(stored.pop("weight"))  # type: ignore[arg-type]
        step = {"step": torch.tensor(float(num_updates))}
        moments = {kind: tensor.to(self.logarithm.device) for kind, tensor in stored.items() if tensor is not None}
        self.optimizer.state[self.logarithm] = step | moments
