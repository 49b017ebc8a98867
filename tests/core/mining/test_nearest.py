"""The best candidates of each query: those of brute force, ties included, in chunks of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mme5core.mining.nearest import LAST, Nearest

CPU = torch.device("cpu")


def brute_force(scores: np.ndarray, places: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and places of the k best of each row, by falling score, then by place."""
    order = np.lexsort((np.broadcast_to(places, scores.shape), -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, 1), places[order]


def searched(
    scores: np.ndarray, places: np.ndarray, k: int, *, chunk: int, tile: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    nearest = Nearest(len(scores), k, device=CPU)
    for start in range(0, scores.shape[1], chunk):
        for first in range(0, len(scores), tile):
            part = torch.as_tensor(scores[first : first + tile, start : start + chunk].copy())
            nearest.add(part, torch.as_tensor(places[start : start + chunk]), first=first)
    return nearest.ranked()


@pytest.mark.parametrize("num_distinct", [2, 7, 50, 10**6])
@pytest.mark.parametrize(("k", "chunk", "tile"), [(1, 300, 9), (5, 64, 40), (10, 1000, 7), (10, 97, 40), (60, 128, 40)])
def test_the_best_are_those_of_brute_force_with_ties(num_distinct: int, k: int, chunk: int, tile: int) -> None:
    random = np.random.default_rng(k + num_distinct)
    scores = (random.integers(0, num_distinct, (40, 700)) / num_distinct).astype(np.float32)
    places = random.permutation(700) * 3
    got, expected = searched(scores, places, k, chunk=chunk, tile=tile), brute_force(scores, places, k)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("chunk", [1, 3, 200])
def test_a_collapsed_model_gives_the_lowest_places(chunk: int) -> None:
    places = np.random.default_rng(0).permutation(200)
    scores, best = searched(np.ones((6, 200), np.float32), places, 5, chunk=chunk)
    np.testing.assert_array_equal(best, np.tile(np.arange(5), (6, 1)))
    assert (scores == 1).all()


def test_what_is_no_candidate_is_never_taken_and_a_query_may_have_fewer() -> None:
    scores = np.full((3, 200), -np.inf, np.float32)
    scores[1, [7, 150]] = [-2.0, 0.5]
    scores[2] = np.nan
    score_BK, place_BK = searched(scores, np.arange(200), 4, chunk=80)
    np.testing.assert_array_equal(place_BK, [[LAST] * 4, [150, 7, LAST, LAST], [LAST] * 4])
    np.testing.assert_array_equal(np.isfinite(score_BK), [[0] * 4, [1, 1, 0, 0], [0] * 4])


def test_nothing_below_the_floor_is_kept() -> None:
    nearest = Nearest(1, 3, device=CPU, floor=0.5)
    nearest.add(torch.tensor([[0.4, 0.5, 0.6, 0.1]]), torch.arange(4))
    np.testing.assert_array_equal(nearest.ranked()[1], [[2, 1, LAST]])


def test_more_neighbours_than_candidates_are_all_of_them() -> None:
    scores = np.array([[0.1, 0.3, 0.2]], np.float32)
    np.testing.assert_array_equal(searched(scores, np.arange(3), 5, chunk=2)[1], [[1, 2, 0, LAST, LAST]])


def test_many_ties_are_looked_at_in_parts() -> None:
    places = np.random.default_rng(0).permutation(4096)
    scores = np.zeros((8, 4096), np.float32)
    scores[:, 4000:] = 1.0
    nearest, sizes = Nearest(8, 5, device=CPU), list[int]()
    add = nearest.add

    def counted(part: torch.Tensor, of_part: torch.Tensor, *, first: int = 0) -> None:
        sizes.append(part.shape[1])
        add(part, of_part, first=first)

    nearest.add = counted  # type: ignore[method-assign]
    for half in (slice(0, 2048), slice(2048, 4096)):
        nearest.add(torch.as_tensor(scores[:, half].copy()), torch.as_tensor(places[half]))
    np.testing.assert_array_equal(nearest.ranked()[1], np.tile(np.sort(places[4000:])[:5], (8, 1)))
    assert min(sizes) < 2048
