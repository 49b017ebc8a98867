"""Contrastive losses, as pure functions of unit vectors.

Shapes: B queries of this process, N columns (documents of all processes), K hard negatives, C candidates, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mme5core.distributed import gather_with_gradient, rank

Negatives = Literal["own", "all"]


def info_nce(
    query_BD: Tensor,
    positive_BD: Tensor,
    negative_BKD: Tensor | None = None,
    *,
    temperature: float,
    negatives: Negatives = "own",
) -> Tensor:
    """InfoNCE from query to document, the mean over queries.

    Where a process group exists, the documents of all processes are columns; every process must hold equally
    many rows. The result is this process's share: averaged over processes, as data-parallel training averages
    gradients, it is the loss and the gradient of one process holding the whole batch.

    Args:
        query_BD, positive_BD: unit vectors; row i of one belongs to row i of the other.
        negative_BKD: hard negatives of each query, or None.
        temperature: divides the similarities.
        negatives: "own": the columns are all positives and the query's own hard negatives (mmE5);
            "all": all positives and every hard negative of the batch (E5-V).

    Raises:
        ValueError: temperature not above 0, shapes that do not fit, or an unknown `negatives`.
    """
    _check_temperature(temperature)
    if negatives not in ("own", "all"):
        raise ValueError(f"negatives must be 'own' or 'all', got {negatives!r}")
    _check_shapes(query_BD, positive_BD, negative_BKD)
    positive_ND = gather_with_gradient(positive_BD)
    logits_BN = query_BD @ positive_ND.T
    if negative_BKD is not None and negative_BKD.shape[1]:
        if negatives == "own":
            own_BK = torch.einsum("bd,bkd->bk", query_BD, negative_BKD)
            logits_BN = torch.cat([logits_BN, own_BK], dim=1)
        else:
            negative_MD = gather_with_gradient(negative_BKD).flatten(0, 1)
            logits_BN = torch.cat([logits_BN, query_BD @ negative_MD.T], dim=1)
    target_B = torch.arange(len(query_BD), device=query_BD.device) + rank() * len(query_BD)
    return F.cross_entropy(_at_least_float32(logits_BN) / temperature, target_B)


def soft_label_kl(
    query_BD: Tensor, candidate_BCD: Tensor, score_BC: Tensor, *, temperature: float, eps: float = 1e-8
) -> Tensor:
    """Symmetric KL divergence between similarities and a judge's scores, the mean over queries (UniME-V2, eq. 4).

    0.5 (KL(P || Q) + KL(Q || P)) with P = softmax(similarity / t) and Q = softmax(score / t), where the logarithms
    are log(p + eps): the floor is part of the published loss and sets how much a confident miss costs.

    Args:
        candidate_BCD: unit vectors of each query's own candidates; candidate 0 is the positive.
        score_BC: the judge's scores in [0, 1].

    Raises:
        ValueError: temperature not above 0, or shapes that do not fit.
    """
    _check_temperature(temperature)
    if candidate_BCD.shape[:2] != score_BC.shape or candidate_BCD.shape[::2] != query_BD.shape:
        raise ValueError(
            f"shapes do not fit: query {tuple(query_BD.shape)}, candidates {tuple(candidate_BCD.shape)}, "
            f"scores {tuple(score_BC.shape)}"
        )
    similarity_BC = torch.einsum("bd,bcd->bc", query_BD, candidate_BCD)
    p_BC = (_at_least_float32(similarity_BC) / temperature).softmax(dim=1)
    q_BC = (score_BC.to(p_BC.dtype) / temperature).softmax(dim=1)
    log_ratio_BC = (p_BC + eps).log() - (q_BC + eps).log()
    # KL(P||Q) + KL(Q||P) = sum (P - Q) (log P - log Q)
    return 0.5 * ((p_BC - q_BC) * log_ratio_BC).sum(dim=1).mean()


def _at_least_float32(values: Tensor) -> Tensor:
    # Divided by a small temperature, bfloat16 steps would be whole units of the logit.
    return values if values.dtype == torch.float64 else values.float()


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def _check_shapes(query_BD: Tensor, positive_BD: Tensor, negative_BKD: Tensor | None) -> None:
    fits = query_BD.ndim == 2 and query_BD.shape == positive_BD.shape
    if negative_BKD is not None:
        fits = fits and negative_BKD.ndim == 3 and negative_BKD.shape[::2] == query_BD.shape
    if not fits:
        shape = None if negative_BKD is None else tuple(negative_BKD.shape)
        raise ValueError(
            f"shapes do not fit: query {tuple(query_BD.shape)}, positive {tuple(positive_BD.shape)}, negatives {shape}"
        )
