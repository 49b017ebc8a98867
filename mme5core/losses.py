"""Contrastive losses, as pure functions of unit vectors.

Shapes: B queries, N columns (documents of the whole batch), K hard negatives, C candidates, R rows computed
together, D width.

A loss over a whole batch is a sum over its rows. `rows` asks for the share of some of them, so that processes and
tiles of memory can divide the work: the shares add up to the whole, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mme5core.distributed import gather_with_gradient, rank, world_size

Negatives = Literal["own", "all"]
Margin = tuple[Literal["absolute", "relative"], float]

MAX_LOGITS = 1 << 24
"""Logits computed at once; above it the rows go in tiles, whose logits are computed again for the gradient."""


def info_nce(
    query_BD: Tensor,
    positive_BD: Tensor,
    negative_BKD: Tensor | None = None,
    *,
    temperature: float | Tensor,
    negatives: Negatives = "own",
    symmetric: bool = False,
    hardness: float = 0.0,
    positive_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    margin: Margin | None = None,
    rows: slice | None = None,
    tile_rows: int | None = None,
) -> Tensor:
    """InfoNCE from query to document, the mean over queries.

    Without `rows`, and where a process group exists, the arguments are this process's rows: the documents of all
    processes are columns, and every process must hold equally many. The result is then this process's share:
    averaged over processes, as data-parallel training averages gradients, it is the loss and the gradient of one
    process holding the whole batch. With `rows` the arguments are the whole batch, on whatever process.

    Args:
        query_BD, positive_BD: unit vectors; row i of one belongs to row i of the other.
        negative_BKD: hard negatives of each query, or None.
        temperature: divides the similarities; one for all, or one for each query [B].
        negatives: "own": the columns are all positives and the query's own hard negatives (mmE5);
            "all": all positives and every hard negative of the batch (E5-V).
        symmetric: the mean of this and of InfoNCE from positive to query, whose columns are the queries (CLIP).
        hardness: the logit of a negative grows by hardness x its similarity, taken as a constant, so that near
            negatives weigh more (LLaVE, arXiv 2503.04812, with alpha = 9; as in sentence-transformers).
        positive_ids, negative_ids: int64 [B] and [B, K], equal for equal documents. A column with the id of the
            query's own positive is no negative and is left out.
        margin: a column is left out as a likely false negative if its similarity is above that of the positive,
            minus the margin: ("absolute", 0.1) or ("relative", 0.05), a share of the positive's similarity
            (NV-Retriever, arXiv 2407.15831). Which are left out is not differentiated.
        rows: the share of these rows: their sum over B, not over their number.
        tile_rows: rows computed together; None: as many as `MAX_LOGITS` allows.

    Raises:
        ValueError: temperature not above 0, shapes that do not fit, or an unknown `negatives`.
    """
    if negatives not in ("own", "all"):
        raise ValueError(f"negatives must be 'own' or 'all', got {negatives!r}")
    _check_temperature(temperature)
    _check_shapes(query_BD, positive_BD, negative_BKD)
    _check_ids(len(query_BD), negative_BKD, positive_ids, negative_ids)
    if negative_BKD is not None and not negative_BKD.shape[1]:
        negative_BKD = negative_ids = None
    temperature_B = _per_row(temperature, query_BD)
    num_rows = len(query_BD)
    if rows is None:
        rows, scale = slice(rank() * num_rows, (rank() + 1) * num_rows), 1 / num_rows
        if world_size() > 1:
            query_BD, positive_BD = gather_with_gradient(query_BD), gather_with_gradient(positive_BD)
            temperature_B = gather_with_gradient(temperature_B)
            negative_BKD = None if negative_BKD is None else gather_with_gradient(negative_BKD)
            positive_ids = None if positive_ids is None else gather_with_gradient(positive_ids)
            negative_ids = None if negative_ids is None else gather_with_gradient(negative_ids)
    else:
        rows, scale = slice(*rows.indices(num_rows)), 1 / num_rows
    own_BK = _own_ids(positive_ids, negative_ids)

    def share(start: int, stop: int) -> Tensor:
        part = slice(start, stop)
        documents, ids = [positive_BD], [positive_ids]
        if negative_BKD is not None and negatives == "all":
            documents.append(negative_BKD.flatten(0, 1))
            ids.append(None if negative_ids is None else negative_ids.flatten())
        options = {"temperature_R": temperature_B[part], "hardness": hardness, "margin": margin, "first": start}
        loss = _row_losses(
            query_BD[part],
            torch.cat(documents),
            is_own_RN=_is_own(positive_ids, ids, documents, part),
            own_RKD=negative_BKD[part] if negative_BKD is not None and negatives == "own" else None,
            own_is_own_RK=None if own_BK is None or negatives == "all" else own_BK[part],
            **options,  # type: ignore[arg-type]
        ).sum()
        if symmetric:
            is_own_RN = _is_own(positive_ids, [positive_ids], [query_BD], part)
            loss = 0.5 * (loss + _row_losses(positive_BD[part], query_BD, is_own_RN=is_own_RN, **options).sum())  # type: ignore[arg-type]
        return loss

    num_columns = len(positive_BD) + (negative_BKD.shape[0] * negative_BKD.shape[1] if negative_BKD is not None else 0)
    return _tiled(share, rows, tile_rows or max(1, MAX_LOGITS // num_columns)) * scale


def soft_label_kl(
    query_BD: Tensor,
    candidate_BCD: Tensor,
    score_BC: Tensor,
    *,
    temperature: float | Tensor,
    eps: float = 1e-8,
    rows: slice | None = None,
) -> Tensor:
    """Symmetric KL divergence between similarities and a judge's scores, the mean over queries (UniME-V2, eq. 4).

    0.5 (KL(P || Q) + KL(Q || P)) with P = softmax(similarity / t) and Q = softmax(score / t), where the logarithms
    are log(p + eps): the floor is part of the published loss and sets how much a confident miss costs.

    Args:
        candidate_BCD: unit vectors of each query's own candidates; candidate 0 is the positive.
        score_BC: the judge's scores in [0, 1].
        temperature: divides similarities and scores; one for all, or one for each query [B].
        rows: the share of these rows: their sum over B. Candidates are a query's own, so that no row needs others.

    Raises:
        ValueError: temperature not above 0, or shapes that do not fit.
    """
    _check_temperature(temperature)
    if candidate_BCD.shape[:2] != score_BC.shape or candidate_BCD.shape[::2] != query_BD.shape:
        raise ValueError(
            f"shapes do not fit: query {tuple(query_BD.shape)}, candidates {tuple(candidate_BCD.shape)}, "
            f"scores {tuple(score_BC.shape)}"
        )
    part = slice(None) if rows is None else rows
    temperature_R1 = _per_row(temperature, query_BD)[part, None]
    similarity_RC = torch.einsum("bd,bcd->bc", query_BD[part], candidate_BCD[part])
    p_RC = (_at_least_float32(similarity_RC) / temperature_R1).softmax(dim=1)
    q_RC = (score_BC[part].to(p_RC.dtype) / temperature_R1).softmax(dim=1)
    log_ratio_RC = (p_RC + eps).log() - (q_RC + eps).log()
    # KL(P||Q) + KL(Q||P) = sum (P - Q) (log P - log Q)
    return 0.5 * ((p_RC - q_RC) * log_ratio_RC).sum() / len(query_BD)


def matryoshka(
    loss: Callable[..., Tensor], *vectors: Tensor | None, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """Any loss over the first d of the D columns as well, for each d in `dims` (arXiv 2205.13147): the weighted mean.

    Args:
        loss: takes the vectors, cut and of unit length again, in the order given.
        vectors: unit vectors, D last; None is passed on.
        dims: widths that shall be usable alone; usually D among them.
        weights: of each width; None: all alike.

    Raises:
        ValueError: no widths, one above D, or another number of weights.
    """
    width = next(tensor.shape[-1] for tensor in vectors if tensor is not None)
    weights = list(weights) if weights is not None else [1.0] * len(dims)
    if not dims or not all(0 < dim <= width for dim in dims) or len(weights) != len(dims):
        raise ValueError(f"matryoshka dims {list(dims)} with weights {weights} do not fit vectors of width {width}")
    total = sum(
        weight * loss(*(None if v is None else F.normalize(v[..., :dim], dim=-1) for v in vectors))
        for dim, weight in zip(dims, weights, strict=True)
    )
    return torch.as_tensor(total) / sum(weights)


def _row_losses(
    query_RD: Tensor,
    document_ND: Tensor,
    *,
    temperature_R: Tensor,
    hardness: float,
    margin: Margin | None,
    first: int,
    is_own_RN: Tensor | None = None,
    own_RKD: Tensor | None = None,
    own_is_own_RK: Tensor | None = None,
) -> Tensor:
    """[R]: cross-entropy of each row against its positive, which is column `first` + its place."""
    target_R = torch.arange(len(query_RD), device=query_RD.device) + first
    similarity = query_RD @ document_ND.T
    dropped = torch.zeros_like(similarity, dtype=torch.bool) if is_own_RN is None else is_own_RN.clone()
    if own_RKD is not None:
        own_RK = torch.einsum("rd,rkd->rk", query_RD, own_RKD)
        similarity = torch.cat([similarity, own_RK], dim=1)
        more = torch.zeros_like(own_RK, dtype=torch.bool) if own_is_own_RK is None else own_is_own_RK
        dropped = torch.cat([dropped, more], dim=1)
    similarity = _at_least_float32(similarity)
    constant = similarity.detach()
    positive_R1 = constant.gather(1, target_R[:, None])
    if margin is not None:
        dropped |= constant > positive_R1 - _margin(margin, positive_R1)
    logits = similarity
    if hardness:
        # What grows is the logit after the temperature: a weight exp(hardness x similarity) on the exponential.
        logits = similarity + hardness * temperature_R[:, None] * constant
    dropped.scatter_(1, target_R[:, None], False)
    logits = logits.scatter(1, target_R[:, None], similarity.gather(1, target_R[:, None]))
    logits = (logits / temperature_R[:, None]).masked_fill(dropped, -torch.inf)
    return F.cross_entropy(logits, target_R, reduction="none")


def _tiled(share: Callable[[int, int], Tensor], rows: slice, tile_rows: int) -> Tensor:
    """The sum of `share` over tiles of the rows; only one tile's logits are in memory at a time."""
    if rows.stop - rows.start <= tile_rows:
        return share(rows.start, rows.stop)
    tiles = [(start, min(start + tile_rows, rows.stop)) for start in range(rows.start, rows.stop, tile_rows)]
    parts: list[Tensor] = [checkpoint(share, *tile, use_reentrant=False) for tile in tiles]  # type: ignore[misc]
    return torch.stack(parts).sum()


def _is_own(
    positive_ids: Tensor | None, column_ids: Sequence[Tensor | None], columns: Sequence[Tensor], part: slice
) -> Tensor | None:
    """[R, N]: which columns are a row's own positive once more; columns without ids are not."""
    if positive_ids is None:
        return None
    same = [
        positive_ids[part, None] == ids[None]
        if ids is not None
        else torch.zeros(len(positive_ids[part]), len(documents), dtype=torch.bool, device=documents.device)
        for ids, documents in zip(column_ids, columns, strict=True)
    ]
    return torch.cat(same, dim=1)


def _own_ids(positive_ids: Tensor | None, negative_ids: Tensor | None) -> Tensor | None:
    return None if positive_ids is None or negative_ids is None else negative_ids == positive_ids[:, None]


def _margin(margin: Margin, positive_R1: Tensor) -> Tensor | float:
    kind, value = margin
    if kind not in ("absolute", "relative"):
        raise ValueError(f"margin is ('absolute', x) or ('relative', x), got {margin!r}")
    return value if kind == "absolute" else value * positive_R1.abs()


def _per_row(temperature: float | Tensor, query_BD: Tensor) -> Tensor:
    dtype = query_BD.dtype if query_BD.dtype == torch.float64 else torch.float32
    value = torch.as_tensor(temperature, dtype=dtype, device=query_BD.device)
    return value.expand(len(query_BD)) if value.ndim == 0 else value


def _at_least_float32(values: Tensor) -> Tensor:
    # Divided by a small temperature, bfloat16 steps would be whole units of the logit.
    return values if values.dtype == torch.float64 else values.float()


def _check_temperature(temperature: float | Tensor) -> None:
    if not (temperature > 0 if isinstance(temperature, float | int) else bool((temperature > 0).all())):
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


def _check_ids(
    num_rows: int, negative_BKD: Tensor | None, positive_ids: Tensor | None, negative_ids: Tensor | None
) -> None:
    if positive_ids is not None and positive_ids.shape != (num_rows,):
        raise ValueError(f"positive_ids of shape {tuple(positive_ids.shape)} for {num_rows} queries")
    if negative_ids is not None and (negative_BKD is None or negative_ids.shape != negative_BKD.shape[:2]):
        raise ValueError(f"negative_ids of shape {tuple(negative_ids.shape)} do not fit the negatives")
