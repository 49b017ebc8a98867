"""Contrastive losses, as pure functions of unit vectors.

Shapes: B queries, N columns (documents of the whole batch), K hard negatives, C candidates, R rows computed
together, D width.

A loss over a whole batch is a sum over its rows. With `rows`, a loss computes only the share of some rows, so that the
work can be divided among processes: the shares add up to the loss of the batch, and their gradients to its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mme5core.distributed import gather_with_gradient, rank, world_size

Negatives = Literal["own", "all"]
Divergence = Literal["symmetric_kl", "jensen_shannon"]
DIVERGENCES: tuple[Divergence, ...] = ("symmetric_kl", "jensen_shannon")
Margin = tuple[Literal["absolute", "relative"], float]

MAX_LOGITS = 1 << 24
"""Most logits in memory at once. A larger loss is computed in tiles of rows, and again in the backward pass."""


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
    margin_spares_own: bool = False,
    rows: slice | None = None,
    tile_rows: int | None = None,
) -> Tensor:
    """InfoNCE from query to document, the mean over queries.

    Without `rows`, the arguments are this process's rows. The documents of all processes are columns, and every
    process must pass the same number of rows. The result is then this process's share: its mean over processes, as
    data-parallel training averages gradients, is the loss and the gradient of one process that holds the whole batch.
    With `rows`, the arguments are the whole batch on every process.

    Args:
        query_BD, positive_BD: unit vectors; row i of one belongs to row i of the other.
        negative_BKD: hard negatives of each query, or None.
        temperature: divides the similarities; one for all, or one for each query [B].
        negatives: "own": the columns are all positives and the query's own hard negatives (mmE5);
            "all": all positives and every hard negative of the batch (E5-V).
        symmetric: average with InfoNCE from positive to query, whose columns are the queries (CLIP).
        hardness: add hardness x similarity to the logit of each negative, as a constant without gradient, so that
            near negatives weigh more (LLaVE, arXiv 2503.04812, with alpha = 9; as in sentence-transformers).
        positive_ids, negative_ids: int64 [B] and [B, K], equal for equal documents. A column with the id of the
            query's own positive is not a negative and is masked.
        margin: mask a column as a likely false negative if its similarity exceeds that of the positive minus the
            margin: ("absolute", 0.1), or ("relative", 0.05) as a fraction of the positive's similarity
            (NV-Retriever, arXiv 2407.15831). The mask has no gradient.
        margin_spares_own: the margin masks in-batch documents only, never a query's own hard negatives, which may have
            been chosen with care.
        rows: return only the share of these rows: the sum of their losses / B.
        tile_rows: rows computed together; None: as many as `MAX_LOGITS` allows.

    Raises:
        ValueError: temperature not above 0, shapes that do not fit, or an unknown `negatives`.
    """
    if negatives not in ("own", "all"):
        raise ValueError(f"negatives must be 'own' or 'all', got {negatives!r}")
    _check_temperature(temperature)
    batch = _Batch(query_BD, positive_BD, _per_row(temperature, query_BD), negative_BKD, positive_ids, negative_ids)
    num_rows = len(query_BD)
    if rows is None:
        batch, rows = batch.gathered(), slice(rank() * num_rows, (rank() + 1) * num_rows)
    share = _InfoNCE(batch, negatives, symmetric, hardness, margin, margin_spares_own).share
    tile_rows = tile_rows or max(1, MAX_LOGITS // batch.num_documents)
    return _tiled(share, slice(*rows.indices(len(batch.query))), tile_rows) * (1 / num_rows)


def soft_label_kl(
    query_BD: Tensor,
    candidate_BCD: Tensor,
    score_BC: Tensor,
    *,
    temperature: float | Tensor,
    eps: float = 1e-8,
    divergence: Divergence = "symmetric_kl",
    rows: slice | None = None,
) -> Tensor:
    """Divergence between similarities and a judge's scores, the mean over queries (UniME-V2, eq. 4).

    0.5 (KL(P || Q) + KL(Q || P)) with P = softmax(similarity / t) and Q = softmax(score / t). The logarithms
    are log(p + eps): eps is part of the published loss and limits the cost of a confident error.

    Args:
        divergence: "symmetric_kl": as above, which the paper calls Jensen-Shannon; "jensen_shannon": the divergence of
            that name, 0.5 (KL(P || M) + KL(Q || M)) with M = (P + Q) / 2.
        candidate_BCD: unit vectors of each query's own candidates; candidate 0 is the positive.
        score_BC: the judge's scores in [0, 1].
        temperature: divides similarities and scores; one for all, or one for each query [B].
        rows: return only the share of these rows: the sum of their losses / B. No row depends on another.

    Raises:
        ValueError: temperature not above 0, shapes that do not fit, or an unknown divergence.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}; known: {', '.join(DIVERGENCES)}")
    logits_RC, temperature_R1 = _own_logits(query_BD, candidate_BCD, score_BC, temperature, rows)
    p_RC = logits_RC.softmax(dim=1)
    q_RC = (_part(score_BC, rows).to(p_RC.dtype) / temperature_R1).softmax(dim=1)
    log_p_RC, log_q_RC = (p_RC + eps).log(), (q_RC + eps).log()
    if divergence == "jensen_shannon":
        log_m_RC = (0.5 * (p_RC + q_RC) + eps).log()
        return 0.5 * (p_RC * (log_p_RC - log_m_RC) + q_RC * (log_q_RC - log_m_RC)).sum() / len(query_BD)
    # KL(P||Q) + KL(Q||P) = sum (P - Q) (log P - log Q)
    return 0.5 * ((p_RC - q_RC) * (log_p_RC - log_q_RC)).sum() / len(query_BD)


def distillation(
    query_BD: Tensor,
    candidate_BCD: Tensor,
    score_BC: Tensor,
    *,
    temperature: float | Tensor,
    teacher_temperature: float = 1.0,
    symmetric: bool = False,
    rows: slice | None = None,
) -> Tensor:
    """Divergence of similarities from a reranker's distribution over each query's candidates, the mean over queries.

    KL(Q || P) with P = softmax(similarity / temperature) and Q = softmax(score / teacher_temperature), as the
    third stage of Qwen3-VL-Embedding distils its reranker; symmetric: 0.5 (KL(P || Q) + KL(Q || P)).
    Computed from logarithms of softmax, without a floor: scores of a reranker are logits, and differ by a few units.

    Args:
        candidate_BCD: unit vectors of each query's own candidates.
        score_BC: the reranker's log-odds or logits, any finite numbers.
        temperature: divides similarities; one for all, or one for each query [B].
        rows: return only the share of these rows: the sum of their losses / B. No row depends on another.

    Raises:
        ValueError: a temperature not above 0, or shapes that do not fit.
    """
    _check_temperature(teacher_temperature)
    logits_RC, _ = _own_logits(query_BD, candidate_BCD, score_BC, temperature, rows)
    log_p_RC = logits_RC.log_softmax(dim=1)
    log_q_RC = (_part(score_BC, rows).to(log_p_RC.dtype) / teacher_temperature).log_softmax(dim=1)
    weight_RC = 0.5 * (log_q_RC.exp() - log_p_RC.exp()) if symmetric else log_q_RC.exp()
    return (weight_RC * (log_q_RC - log_p_RC)).sum() / len(query_BD)


def _own_logits(
    query_BD: Tensor, candidate_BCD: Tensor, score_BC: Tensor, temperature: float | Tensor, rows: slice | None
) -> tuple[Tensor, Tensor]:
    """Similarities with each query's own candidates over the temperature [R, C], and the temperature [R, 1].

    Raises:
        ValueError: temperature not above 0, or shapes that do not fit.
    """
    _check_temperature(temperature)
    if candidate_BCD.shape[:2] != score_BC.shape or candidate_BCD.shape[::2] != query_BD.shape:
        raise ValueError(
            f"shapes do not fit: query {tuple(query_BD.shape)}, candidates {tuple(candidate_BCD.shape)}, "
            f"scores {tuple(score_BC.shape)}"
        )
    temperature_R1 = _part(_per_row(temperature, query_BD), rows)[:, None]
    similarity_RC = torch.einsum("bd,bcd->bc", _part(query_BD, rows), _part(candidate_BCD, rows))
    return _at_least_float32(similarity_RC) / temperature_R1, temperature_R1


def _part(tensor: Tensor, rows: slice | None) -> Tensor:
    return tensor if rows is None else tensor[rows]


def matryoshka(
    loss: Callable[..., Tensor], *vectors: Tensor | None, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """Weighted mean of a loss over the first d columns of the vectors, for each d in `dims` (arXiv 2205.13147).

    Args:
        loss: called with the vectors in the order given, cut to d columns and rescaled to unit length.
        vectors: unit vectors whose last dimension is D; None is passed on.
        dims: widths that the vectors shall be usable at; usually D among them.
        weights: one for each width; None: all equal.

    Raises:
        ValueError: `dims` is empty, a width is above D, or the number of weights differs.
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


@dataclass(frozen=True, slots=True)
class _Batch:
    """Vectors and document ids of the rows of a batch, in the shapes of `info_nce`; `temperature` is [B].

    Raises:
        ValueError: the shapes do not fit.
    """

    query: Tensor
    positive: Tensor
    temperature: Tensor
    negative: Tensor | None
    positive_ids: Tensor | None
    negative_ids: Tensor | None

    def __post_init__(self) -> None:
        _check_shapes(self.query, self.positive, self.negative)
        _check_ids(len(self.query), self.negative, self.positive_ids, self.negative_ids)

    @property
    def num_documents(self) -> int:
        """Positives and hard negatives of all rows."""
        return len(self.positive) + (0 if self.negative is None else self.negative.shape[:2].numel())

    def gathered(self) -> _Batch:
        """The rows of all processes, in the order of their ranks."""
        if world_size() == 1:
            return self
        return _Batch(
            gather_with_gradient(self.query),
            gather_with_gradient(self.positive),
            gather_with_gradient(self.temperature),
            *(
                None if tensor is None or not tensor.numel() else gather_with_gradient(tensor)
                for tensor in (self.negative, self.positive_ids, self.negative_ids)
            ),
        )


@dataclass(frozen=True, slots=True)
class _InfoNCE:
    """The loss of `info_nce` over a whole batch."""

    batch: _Batch
    negatives: Negatives
    symmetric: bool
    hardness: float
    margin: Margin | None
    margin_spares_own: bool

    def share(self, start: int, stop: int) -> Tensor:
        """The sum of the losses of the rows start, ..., stop - 1."""
        part = slice(start, stop)
        loss = self._to_documents(part)
        return 0.5 * (loss + self._to_queries(part)) if self.symmetric else loss

    def _to_documents(self, part: slice) -> Tensor:
        batch = self.batch
        documents, ids = [batch.positive], [batch.positive_ids]
        own_RKD = is_copy_RK = None
        if batch.negative is not None and self.negatives == "all":
            documents.append(batch.negative.flatten(0, 1))
            ids.append(None if batch.negative_ids is None else batch.negative_ids.flatten())
        elif batch.negative is not None:
            own_RKD = batch.negative[part]
            if batch.positive_ids is not None and batch.negative_ids is not None:
                is_copy_RK = batch.negative_ids[part] == batch.positive_ids[part, None]
        return _row_losses(
            batch.query[part],
            torch.cat(documents),
            temperature_R=batch.temperature[part],
            hardness=self.hardness,
            margin=self.margin,
            first=part.start,
            is_copy_RN=_is_copy_of_positive(batch.positive_ids, ids, documents, part),
            own_RKD=own_RKD,
            is_copy_RK=is_copy_RK,
            spared_RN=self._own_columns(part) if self.margin is not None and self.margin_spares_own else None,
        ).sum()

    def _own_columns(self, part: slice) -> Tensor | None:
        """[R, N]: which columns are the row's own hard negatives."""
        negative_BKD = self.batch.negative
        if negative_BKD is None:
            return None
        num_rows, num_own = negative_BKD.shape[:2]
        row_R = torch.arange(part.start, part.stop, device=negative_BKD.device)
        none_RB = torch.zeros(len(row_R), num_rows, dtype=torch.bool, device=negative_BKD.device)
        if self.negatives == "own":
            return torch.cat([none_RB, none_RB.new_ones(len(row_R), num_own)], dim=1)
        owner_N = torch.arange(num_rows, device=negative_BKD.device).repeat_interleave(num_own)
        return torch.cat([none_RB, owner_N[None] == row_R[:, None]], dim=1)

    def _to_queries(self, part: slice) -> Tensor:
        batch = self.batch
        return _row_losses(
            batch.positive[part],
            batch.query,
            temperature_R=batch.temperature[part],
            hardness=self.hardness,
            margin=self.margin,
            first=part.start,
            is_copy_RN=_is_copy_of_positive(batch.positive_ids, [batch.positive_ids], [batch.query], part),
        ).sum()


def _row_losses(
    query_RD: Tensor,
    document_ND: Tensor,
    *,
    temperature_R: Tensor,
    hardness: float,
    margin: Margin | None,
    first: int,
    is_copy_RN: Tensor | None = None,
    own_RKD: Tensor | None = None,
    is_copy_RK: Tensor | None = None,
    spared_RN: Tensor | None = None,
) -> Tensor:
    """[R]: cross-entropy of each row against its positive; the positive of row r is column `first` + r.

    Args:
        is_copy_RN: which columns of `document_ND` are copies of the positive; they are masked.
        own_RKD: hard negatives that are columns of their own row only.
        is_copy_RK: which of them are copies of the positive.
        spared_RN: columns, those of `own_RKD` among them, that the margin does not mask.
    """
    target_R = torch.arange(len(query_RD), device=query_RD.device) + first
    similarity = query_RD @ document_ND.T
    masked = torch.zeros_like(similarity, dtype=torch.bool) if is_copy_RN is None else is_copy_RN.clone()
    if own_RKD is not None:
        own_RK = torch.einsum("rd,rkd->rk", query_RD, own_RKD)
        similarity = torch.cat([similarity, own_RK], dim=1)
        masked_RK = torch.zeros_like(own_RK, dtype=torch.bool) if is_copy_RK is None else is_copy_RK
        masked = torch.cat([masked, masked_RK], dim=1)
    similarity = _at_least_float32(similarity)
    constant = similarity.detach()
    positive_R1 = constant.gather(1, target_R[:, None])
    if margin is not None:
        too_similar = constant > positive_R1 - _margin(margin, positive_R1)
        masked |= too_similar if spared_RN is None else too_similar & ~spared_RN
    logits = similarity
    if hardness:
        # Times the temperature, which divides below: the logit itself grows by hardness x similarity.
        logits = similarity + hardness * temperature_R[:, None] * constant
    masked.scatter_(1, target_R[:, None], False)
    logits = logits.scatter(1, target_R[:, None], similarity.gather(1, target_R[:, None]))
    logits = (logits / temperature_R[:, None]).masked_fill(masked, -torch.inf)
    return F.cross_entropy(logits, target_R, reduction="none")


def _tiled(share: Callable[[int, int], Tensor], rows: slice, tile_rows: int) -> Tensor:
    """The sum of `share` over tiles of the rows; the logits of only one tile are in memory at a time."""
    if rows.stop - rows.start <= tile_rows:
        return share(rows.start, rows.stop)
    tiles = [(start, min(start + tile_rows, rows.stop)) for start in range(rows.start, rows.stop, tile_rows)]
    parts: list[Tensor] = [checkpoint(share, *tile, use_reentrant=False) for tile in tiles]  # type: ignore[misc]
    return torch.stack(parts).sum()


def _is_copy_of_positive(
    positive_ids: Tensor | None, column_ids: Sequence[Tensor | None], columns: Sequence[Tensor], part: slice
) -> Tensor | None:
    """[R, N]: whether a column is the same document as the row's positive; False for columns without ids."""
    if positive_ids is None:
        return None
    is_copy = [
        positive_ids[part, None] == ids[None]
        if ids is not None
        else torch.zeros(len(positive_ids[part]), len(documents), dtype=torch.bool, device=documents.device)
        for ids, documents in zip(column_ids, columns, strict=True)
    ]
    return torch.cat(is_copy, dim=1)


def _margin(margin: Margin, positive_R1: Tensor) -> Tensor | float:
    kind, width = margin
    if kind not in ("absolute", "relative"):
        raise ValueError(f"margin is ('absolute', x) or ('relative', x), got {margin!r}")
    return width if kind == "absolute" else width * positive_R1.abs()


def _per_row(temperature: float | Tensor, query_BD: Tensor) -> Tensor:
    dtype = query_BD.dtype if query_BD.dtype == torch.float64 else torch.float32
    temperature_B = torch.as_tensor(temperature, dtype=dtype, device=query_BD.device)
    return temperature_B.expand(len(query_BD)) if temperature_B.ndim == 0 else temperature_B


def _at_least_float32(similarity: Tensor) -> Tensor:
    # A bfloat16 rounding error divided by a small temperature would change the logit by whole units.
    return similarity if similarity.dtype == torch.float64 else similarity.float()


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
