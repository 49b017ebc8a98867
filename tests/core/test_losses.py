"""Tests of the losses against float64 formulas in NumPy, numeric gradients, and one process against two.

Shapes: B queries, K hard negatives, C candidates, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, multiprocessing

from mme5core.losses import Negatives, info_nce, soft_label_kl

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


def tensors(*arrays: Array) -> list[Tensor]:
    return [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]


def slow_info_nce(query: Array, positive: Array, negative: Array, temperature: float, negatives: Negatives) -> float:
    total = 0.0
    for row in range(len(query)):
        others = negative[row] if negatives == "own" else negative.reshape(-1, query.shape[1])
        columns = [query[row] @ document / temperature for document in (*positive, *others)]
        total += np.log(np.sum(np.exp(columns))) - columns[row]
    return float(total / len(query))


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
    for negatives in BOTH:
        leaves = tensors(QUERY[half], POSITIVE[half], NEGATIVE[half])
        loss = info_nce(*leaves, temperature=0.2, negatives=negatives)
        loss.backward()
        torch.save([loss.detach(), *(leaf.grad for leaf in leaves)], f"{folder}/{negatives}-{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(share_of_one_process, args=(str(tmp_path),), nprocs=2)
    for negatives in BOTH:
        leaves = tensors(QUERY, POSITIVE, NEGATIVE)
        loss = info_nce(*leaves, temperature=0.2, negatives=negatives)
        loss.backward()
        shares = [torch.load(tmp_path / f"{negatives}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        torch.testing.assert_close((shares[0][0] + shares[1][0]) / 2, loss.detach())
        for place, leaf in enumerate(leaves, start=1):
            # Data-parallel training averages over processes: each process's rows bring half of their gradient.
            torch.testing.assert_close(torch.cat([share[place] for share in shares]) / 2, leaf.grad)
