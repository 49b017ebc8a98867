"""Tests of the losses against float64 formulas in NumPy, numeric gradients, and one process against two.

Shapes: B queries, K hard negatives, C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, multiprocessing

from mme5core.losses import Margin, Negatives, distillation, info_nce, matryoshka, soft_label_kl

Array = NDArray[np.float64]
B, K, C, D = 4, 2, 3, 5
BOTH: list[Negatives] = ["own", "all"]


def units(*shape: int, seed: int) -> Array:
    values = np.random.default_rng(seed).normal(size=shape)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


QUERY, POSITIVE, NEGATIVE, CANDIDATE = (
    units(B, D, seed=0),
    units(B, D, seed=1),
    units(B, K, D, seed=2),
    units(B, C, D, seed=3),
)
SCORE = np.random.default_rng(4).uniform(size=(B, C))
# Queries 0 and 2 have one positive, which is also a hard negative of query 3; query 1's is its own hard negative.
POSITIVE_IDS, NEGATIVE_IDS = np.array([7, 8, 7, 9]), np.array([[1, 2], [8, 3], [4, 5], [7, 6]])
IDS = {"positive_ids": POSITIVE_IDS, "negative_ids": NEGATIVE_IDS}
TEMPERATURES = np.array([0.1, 0.2, 0.4, 0.3])
VARIANTS: dict[str, dict[str, Any]] = {
    "own": {},
    "all": {"negatives": "all"},
    "symmetric": {"symmetric": True},
    "hardness": {"hardness": 9.0},
    "hardness, symmetric, all": {"hardness": 9.0, "symmetric": True, "negatives": "all"},
    "ids": IDS,
    "ids, all, symmetric": IDS | {"negatives": "all", "symmetric": True},
    "ids of positives only": {"positive_ids": POSITIVE_IDS, "negatives": "all"},
    "margin": {"margin": ("absolute", -0.2)},
    "relative margin": {"margin": ("relative", 0.1), "negatives": "all"},
    "margin that spares its own": {"margin": ("absolute", -0.2), "margin_spares_own": True},
    "margin that spares its own, all": {"margin": ("absolute", 0.1), "margin_spares_own": True, "negatives": "all"},
    "temperature per row": {"temperature": TEMPERATURES},
    "everything": IDS
    | {
        "negatives": "all",
        "symmetric": True,
        "hardness": 3.0,
        "margin": ("absolute", 0.1),
        "temperature": TEMPERATURES,
    },
}


def tensors(*arrays: Array) -> list[Tensor]:
    return [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]


def slow_info_nce(
    query: Array, positive: Array, negative: Array, temperature: float | Array, negatives: Negatives = "own"
) -> float:
    return slow_variant(query, positive, negative, temperature=temperature, negatives=negatives)


def slow_variant(
    query: Array,
    positive: Array,
    negative: Array,
    *,
    temperature: float | Array,
    negatives: Negatives = "own",
    symmetric: bool = False,
    hardness: float = 0.0,
    positive_ids: NDArray[np.int64] | None = None,
    negative_ids: NDArray[np.int64] | None = None,
    margin: Margin | None = None,
    margin_spares_own: bool = False,
    constant: tuple[Array, Array, Array] | None = None,
) -> float:
    """One row, one column, one exponential at a time; `constant` holds the vectors that are not differentiated."""
    frozen_query, frozen_positive, frozen_negative = constant or (query, positive, negative)
    temperatures = np.broadcast_to(temperature, len(query))

    def direction(anchors: Array, columns: Array, frozen_anchors: Array, frozen_columns: Array, hard: bool) -> float:
        total = 0.0
        for row, t in enumerate(temperatures):
            own = frozen_anchors[row] @ frozen_columns[row]
            cut = np.inf
            if margin is not None:
                cut = own - (margin[1] if margin[0] == "absolute" else margin[1] * abs(own))
            documents = [(columns[j], frozen_columns[j], j == row, j) for j in range(len(columns))]
            ids = {j: positive_ids[j] for j in range(len(columns))} if positive_ids is not None else {}
            if hard:
                for i in range(len(query)) if negatives == "all" else [row]:
                    for k in range(negative.shape[1]):
                        documents.append((negative[i, k], frozen_negative[i, k], False, (i, k)))  # type: ignore[arg-type]
                        if negative_ids is not None:
                            ids[(i, k)] = negative_ids[i, k]  # type: ignore[index]
            sum_of_exponentials = 0.0
            for vector, frozen, is_positive, name in documents:
                similarity, weight = anchors[row] @ vector, frozen_anchors[row] @ frozen
                if is_positive:
                    sum_of_exponentials += np.exp(similarity / t)
                elif margin_spares_own and isinstance(name, tuple) and name[0] == row:
                    is_copy = positive_ids is not None and ids.get(name) == positive_ids[row]
                    sum_of_exponentials += 0.0 if is_copy else np.exp(hardness * weight) * np.exp(similarity / t)
                elif not (weight > cut or (positive_ids is not None and ids.get(name) == positive_ids[row])):
                    sum_of_exponentials += np.exp(hardness * weight) * np.exp(similarity / t)
            total += np.log(sum_of_exponentials) - anchors[row] @ columns[row] / t
        return total / len(anchors)

    there = direction(query, positive, frozen_query, frozen_positive, True)
    if not symmetric:
        return float(there)
    return float(0.5 * (there + direction(positive, query, frozen_positive, frozen_query, False)))


def slow_kl(query: Array, candidate: Array, score: Array, temperature: float, eps: float) -> float:
    total = 0.0
    for row in range(len(query)):
        p = np.exp(candidate[row] @ query[row] / temperature)
        q = np.exp(score[row] / temperature)
        p, q = p / p.sum(), q / q.sum()
        forward = np.sum(p * (np.log(p + eps) - np.log(q + eps)))
        total += 0.5 * (forward + np.sum(q * (np.log(q + eps) - np.log(p + eps))))
    return float(total / len(query))


def numeric_gradient(loss: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    gradient = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        nudge = np.zeros_like(at)
        nudge[place] = step
        gradient[place] = (loss(at + nudge) - loss(at - nudge)) / (2 * step)
    return gradient


@pytest.mark.parametrize("negatives", BOTH)
@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_info_nce_is_its_formula(temperature: float, negatives: Negatives) -> None:
    found = info_nce(*tensors(QUERY, POSITIVE, NEGATIVE), temperature=temperature, negatives=negatives)
    expected = slow_info_nce(QUERY, POSITIVE, NEGATIVE, temperature, negatives)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("negatives", BOTH)
def test_info_nce_has_the_numeric_gradient_in_each_argument(negatives: Negatives) -> None:
    arrays = [QUERY, POSITIVE, NEGATIVE]
    leaves = tensors(*arrays)
    info_nce(*leaves, temperature=0.2, negatives=negatives).backward()
    for number, leaf in enumerate(leaves):

        def loss(value: Array, number: int = number) -> float:
            return slow_info_nce(*[*arrays[:number], value, *arrays[number + 1 :]], 0.2, negatives)

        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), numeric_gradient(loss, arrays[number]), atol=1e-7)


def as_tensors(options: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_its_formula_and_has_its_numeric_gradient(name: str) -> None:
    options = {"temperature": 0.2} | VARIANTS[name]
    arrays = (QUERY, POSITIVE, NEGATIVE)
    leaves = tensors(*arrays)
    found = info_nce(*leaves, **as_tensors(options))
    assert found.item() == pytest.approx(slow_variant(*arrays, **options), rel=1e-9)
    found.backward()
    for number, leaf in enumerate(leaves):

        def loss(value: Array, number: int = number) -> float:
            return slow_variant(*[*arrays[:number], value, *arrays[number + 1 :]], **options, constant=arrays)

        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), numeric_gradient(loss, arrays[number]), atol=1e-7)


def test_every_variant_gives_another_number() -> None:
    values = [info_nce(*tensors(QUERY, POSITIVE, NEGATIVE), **as_tensors({"temperature": 0.2} | options)).item()
              for options in VARIANTS.values()]  # fmt: skip
    assert len({round(value, 9) for value in values}) == len(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_shares_of_the_rows_add_up_to_the_whole_and_so_do_tiles(name: str) -> None:
    options = as_tensors({"temperature": 0.2} | VARIANTS[name])
    whole = tensors(QUERY, POSITIVE, NEGATIVE)
    expected = info_nce(*whole, **options)
    expected.backward()
    parts = tensors(QUERY, POSITIVE, NEGATIVE)
    shares = [info_nce(*parts, **options, rows=rows) for rows in (slice(0, 1), slice(1, 4))]
    for share in shares:
        share.backward()
    tiled = tensors(QUERY, POSITIVE, NEGATIVE)
    in_tiles = info_nce(*tiled, **options, tile_rows=3)
    in_tiles.backward()
    torch.testing.assert_close(shares[0] + shares[1], expected)
    torch.testing.assert_close(in_tiles, expected)
    for a, b, c in zip(whole, parts, tiled, strict=True):
        torch.testing.assert_close(b.grad, a.grad)
        torch.testing.assert_close(c.grad, a.grad)


def test_the_temperature_has_its_numeric_gradient_for_one_and_for_each_row() -> None:
    for value in (np.array(0.2), TEMPERATURES):
        temperature = torch.tensor(value, requires_grad=True)
        info_nce(*tensors(QUERY, POSITIVE, NEGATIVE), temperature=temperature, symmetric=True).backward()
        expected = numeric_gradient(
            lambda t: slow_variant(QUERY, POSITIVE, NEGATIVE, temperature=t, symmetric=True), value
        )
        assert temperature.grad is not None
        np.testing.assert_allclose(temperature.grad.numpy(), expected, rtol=1e-5)


def test_a_duplicate_of_the_positive_is_no_negative() -> None:
    # Both queries want the same document: without ids each calls the other's positive wrong, at a cost of log 2.
    same = torch.ones(2, 1)
    assert info_nce(same, same, temperature=1.0).item() == pytest.approx(np.log(2))
    assert info_nce(same, same, temperature=1.0, positive_ids=torch.tensor([5, 5])).item() == 0


def test_matryoshka_is_the_weighted_mean_over_the_widths_of_vectors_made_unit_again() -> None:
    arrays = (QUERY, POSITIVE, NEGATIVE)

    def cut(array: Array, dim: int) -> Array:
        return array[..., :dim] / np.linalg.norm(array[..., :dim], axis=-1, keepdims=True)

    def slow(query: Array) -> float:
        parts = [slow_info_nce(cut(query, dim), cut(POSITIVE, dim), cut(NEGATIVE, dim), 0.2) for dim in (2, D)]
        return (3 * parts[0] + parts[1]) / 4

    leaves = tensors(*arrays)
    found = matryoshka(lambda *v: info_nce(*v, temperature=0.2), *leaves, dims=(2, D), weights=(3, 1))
    assert found.item() == pytest.approx(slow(QUERY), rel=1e-9)
    found.backward()
    assert leaves[0].grad is not None
    np.testing.assert_allclose(leaves[0].grad.numpy(), numeric_gradient(slow, QUERY), atol=1e-7)
    query, candidate, score = tensors(QUERY, CANDIDATE, SCORE)
    soft = matryoshka(lambda q, c: soft_label_kl(q, c, score, temperature=0.2), query, candidate, dims=(3,))
    expected = slow_kl(cut(QUERY, 3), cut(CANDIDATE, 3), SCORE, 0.2, 1e-8)
    assert soft.item() == pytest.approx(expected, rel=1e-9)
    for dims in ((), (D + 1,), (0,)):
        with pytest.raises(ValueError, match="do not fit vectors of width 5"):
            matryoshka(lambda *v: info_nce(*v, temperature=0.2), *leaves, dims=dims)


def test_soft_label_shares_add_up_to_the_whole() -> None:
    leaves = tensors(QUERY, CANDIDATE, SCORE)
    whole = soft_label_kl(*leaves, temperature=torch.tensor(TEMPERATURES))
    shares = [
        soft_label_kl(*leaves, temperature=torch.tensor(TEMPERATURES), rows=r) for r in (slice(0, 3), slice(3, 4))
    ]
    torch.testing.assert_close(shares[0] + shares[1], whole)


def test_own_and_all_negatives_give_two_numbers_and_own_is_the_default() -> None:
    leaves = tensors(QUERY, POSITIVE, NEGATIVE)
    own, every = (info_nce(*leaves, temperature=0.2, negatives=negatives).item() for negatives in BOTH)
    assert own < every
    assert info_nce(*leaves, temperature=0.2).item() == own


@pytest.mark.parametrize("negative", [None, np.zeros((B, 0, D))])
def test_without_hard_negatives_the_columns_are_the_positives(negative: Array | None) -> None:
    query, positive = tensors(QUERY, POSITIVE)
    found = info_nce(query, positive, None if negative is None else torch.tensor(negative), temperature=0.2)
    assert found.item() == pytest.approx(slow_info_nce(QUERY, POSITIVE, np.zeros((B, 0, D)), 0.2, "own"), rel=1e-9)


def test_the_loss_goes_from_query_to_document_only() -> None:
    query, positive = tensors(QUERY, POSITIVE)
    there, back = (info_nce(a, b, temperature=0.2).item() for a, b in ((query, positive), (positive, query)))
    assert abs(there - back) > 1e-3


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_the_temperature_divides(temperature: float) -> None:
    # The positive's similarity is 1 and the other's 0, so the loss is log(1 + exp(-1 / t)).
    found = info_nce(*tensors(np.eye(2), np.eye(2)), temperature=temperature)
    assert found.item() == pytest.approx(np.log1p(np.exp(-1 / temperature)), rel=1e-9)
    query, candidate = tensors(np.eye(2)[:1], np.eye(2)[None])
    p, q = 1 / (1 + np.exp(-1 / temperature)), 0.5
    kl = soft_label_kl(query, candidate, torch.zeros(1, 2), temperature=temperature)
    expected = 0.5 * sum((a - q) * (np.log(a + 1e-8) - np.log(q + 1e-8)) for a in (p, 1 - p))
    assert kl.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("temperature", "eps"), [(0.02, 1e-8), (0.02, 1e-3), (1.0, 1e-8)])
def test_soft_label_kl_is_its_formula_with_the_floor_inside_the_logarithm(temperature: float, eps: float) -> None:
    found = soft_label_kl(*tensors(QUERY, CANDIDATE, SCORE), temperature=temperature, eps=eps)
    assert found.item() == pytest.approx(slow_kl(QUERY, CANDIDATE, SCORE, temperature, eps), rel=1e-9)


def test_soft_label_kl_has_the_numeric_gradient() -> None:
    query, candidate, score = tensors(QUERY, CANDIDATE, SCORE)
    soft_label_kl(query, candidate, score, temperature=0.3).backward()
    assert query.grad is not None and candidate.grad is not None
    of_query = numeric_gradient(lambda value: slow_kl(value, CANDIDATE, SCORE, 0.3, 1e-8), QUERY)
    of_candidate = numeric_gradient(lambda value: slow_kl(QUERY, value, SCORE, 0.3, 1e-8), CANDIDATE)
    np.testing.assert_allclose(query.grad.numpy(), of_query, atol=1e-7)
    np.testing.assert_allclose(candidate.grad.numpy(), of_candidate, atol=1e-7)


def slow_js(query: np.ndarray, candidate: np.ndarray, score: np.ndarray, temperature: float, eps: float) -> float:
    total = 0.0
    for q_D, c_CD, s_C in zip(query, candidate, score, strict=True):
        p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (c_CD @ q_D, s_C))
        m = (p + q) / 2
        total += 0.5 * sum((d * (np.log(d + eps) - np.log(m + eps))).sum() for d in (p, q))
    return total / len(query)


def test_jensen_shannon_is_its_formula_and_never_above_log_2() -> None:
    found = soft_label_kl(*tensors(QUERY, CANDIDATE, SCORE), temperature=0.02, divergence="jensen_shannon")
    assert found.item() == pytest.approx(slow_js(QUERY, CANDIDATE, SCORE, 0.02, 1e-8), rel=1e-9)
    assert 0 < found.item() <= np.log(2)
    with pytest.raises(ValueError, match="unknown divergence 'js'; known: symmetric_kl, jensen_shannon"):
        soft_label_kl(*tensors(QUERY, CANDIDATE, SCORE), temperature=0.02, divergence="js")  # type: ignore[arg-type]


@pytest.mark.parametrize(("divergence", "slow"), [("symmetric_kl", slow_kl), ("jensen_shannon", slow_js)])
def test_scores_of_0_and_1_give_a_finite_loss_with_the_numeric_gradient(divergence: Any, slow: Any) -> None:
    score = (np.arange(SCORE.size) % 2).reshape(SCORE.shape).astype(float)
    query, candidate, scores = tensors(QUERY, CANDIDATE, score)
    loss = soft_label_kl(query, candidate, scores, temperature=0.02, divergence=divergence)
    assert loss.item() == pytest.approx(slow(QUERY, CANDIDATE, score, 0.02, 1e-8), rel=1e-9)
    loss.backward()
    assert query.grad is not None and candidate.grad is not None
    of_query = numeric_gradient(lambda array: slow(array, CANDIDATE, score, 0.02, 1e-8), QUERY)
    of_candidate = numeric_gradient(lambda array: slow(QUERY, array, score, 0.02, 1e-8), CANDIDATE)
    np.testing.assert_allclose(query.grad.numpy(), of_query, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(candidate.grad.numpy(), of_candidate, rtol=1e-4, atol=1e-5)
    single = soft_label_kl(*(t.float() for t in tensors(QUERY, CANDIDATE, score)), temperature=0.02)
    assert bool(torch.isfinite(single))


def slow_distillation(
    query: np.ndarray, candidate: np.ndarray, score: np.ndarray, temperature: float, teacher: float, symmetric: bool
) -> float:
    total = 0.0
    for q_D, c_CD, s_C in zip(query, candidate, score, strict=True):
        p, q = (np.exp(x) / np.exp(x).sum() for x in (c_CD @ q_D / temperature, s_C / teacher))
        forward, backward = (q * np.log(q / p)).sum(), (p * np.log(p / q)).sum()
        total += 0.5 * (forward + backward) if symmetric else forward
    return total / len(query)


@pytest.mark.parametrize("symmetric", [False, True])
def test_distillation_is_its_formula_with_the_numeric_gradient(symmetric: bool) -> None:
    score = 9 * SCORE - 4  # logits, of both signs
    query, candidate, scores = tensors(QUERY, CANDIDATE, score)
    loss = distillation(query, candidate, scores, temperature=0.3, teacher_temperature=2.0, symmetric=symmetric)
    assert loss.item() == pytest.approx(slow_distillation(QUERY, CANDIDATE, score, 0.3, 2.0, symmetric), rel=1e-9)
    loss.backward()
    assert query.grad is not None and candidate.grad is not None
    of_query = numeric_gradient(lambda a: slow_distillation(a, CANDIDATE, score, 0.3, 2.0, symmetric), QUERY)
    of_candidate = numeric_gradient(lambda a: slow_distillation(QUERY, a, score, 0.3, 2.0, symmetric), CANDIDATE)
    np.testing.assert_allclose(query.grad.numpy(), of_query, atol=1e-7)
    np.testing.assert_allclose(candidate.grad.numpy(), of_candidate, atol=1e-7)
    shares = [
        distillation(
            *tensors(QUERY, CANDIDATE, score),
            temperature=0.3,
            teacher_temperature=2.0,
            symmetric=symmetric,
            rows=slice(row, row + 1),
        ).item()
        for row in range(B)
    ]
    assert sum(shares) == pytest.approx(loss.item(), rel=1e-9)


def test_distillation_of_sure_scores_is_finite() -> None:
    score = np.where(np.arange(SCORE.size) % 2, 40.0, -40.0).reshape(SCORE.shape)
    query, candidate, scores = tensors(QUERY, CANDIDATE, score)
    loss = distillation(query.float(), candidate.float(), scores.float(), temperature=0.02, symmetric=True)
    loss.backward()
    assert query.grad is not None and bool(torch.isfinite(loss)) and bool(torch.isfinite(query.grad).all())


def test_similarities_that_equal_the_scores_cost_nothing() -> None:
    similarity = np.einsum("bd,bcd->bc", QUERY, CANDIDATE)
    assert soft_label_kl(*tensors(QUERY, CANDIDATE, similarity), temperature=0.02).item() == pytest.approx(0, abs=1e-12)


def test_bfloat16_vectors_are_divided_by_the_temperature_in_float32() -> None:
    query, positive = (torch.tensor(array).bfloat16() for array in (QUERY, POSITIVE))
    expected = torch.nn.functional.cross_entropy((query @ positive.T).float() / 0.02, torch.arange(B))
    found = info_nce(query, positive, temperature=0.02)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_0_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        info_nce(*tensors(QUERY, POSITIVE), temperature=temperature)
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        soft_label_kl(*tensors(QUERY, CANDIDATE, SCORE), temperature=temperature)
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        distillation(*tensors(QUERY, CANDIDATE, SCORE), temperature=0.1, teacher_temperature=temperature)


def test_shapes_that_do_not_fit_and_unknown_negatives_are_refused() -> None:
    query, positive, negative, candidate, score = tensors(QUERY, POSITIVE, NEGATIVE, CANDIDATE, SCORE)
    for arguments in ((query, positive[:1]), (query, positive, negative[:2]), (query, positive, positive)):
        with pytest.raises(ValueError, match="shapes do not fit"):
            info_nce(*arguments, temperature=1.0)
    for scores in (score[:, :1], score[:1]):
        with pytest.raises(ValueError, match="shapes do not fit"):
            soft_label_kl(query, candidate, scores, temperature=1.0)
    with pytest.raises(ValueError, match="'own' or 'all', got 'none'"):
        info_nce(query, positive, negative, temperature=1.0, negatives="none")  # type: ignore[arg-type]


def share_of_one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = slice(rank * B // 2, (rank + 1) * B // 2)
    for name, variant in VARIANTS.items():
        leaves = tensors(QUERY[half], POSITIVE[half], NEGATIVE[half])
        mine = {key: value[half] if isinstance(value, np.ndarray) else value for key, value in variant.items()}
        loss = info_nce(*leaves, **as_tensors({"temperature": 0.2} | mine))
        loss.backward()
        torch.save([loss.detach(), *(leaf.grad for leaf in leaves)], f"{folder}/{name}-{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(share_of_one_process, args=(str(tmp_path),), nprocs=2)
    for name, variant in VARIANTS.items():
        leaves = tensors(QUERY, POSITIVE, NEGATIVE)
        loss = info_nce(*leaves, **as_tensors({"temperature": 0.2} | variant))
        loss.backward()
        shares = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        torch.testing.assert_close((shares[0][0] + shares[1][0]) / 2, loss.detach())
        for place, leaf in enumerate(leaves, start=1):
            # Data-parallel training averages over processes: each process's rows bring half of their gradient.
            torch.testing.assert_close(torch.cat([share[place] for share in shares]) / 2, leaf.grad)
