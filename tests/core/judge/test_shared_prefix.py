"""A query's candidates share its part of the prompt: computed once, with the scores of each pair alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mme5core import Content
from mme5core.encoder import shared_prefix
from mme5core.judge import Judge
from tests.core.backbones.families import UNKNOWN, VLMS
from tests.core.contents import picture
from tests.core.judge.families import each_family

LONG = "a dog on a red sofa, asleep, while the cat looks on; " * 4
TEXTS = [Content("a cat"), Content("a dog on a sofa"), Content("x"), Content("a " * 30)]
PICTURES = [Content(image=picture(n, (60, 40))) for n in range(2)] + [
    Content("with a text", picture(3, (33, 100))),
    Content(image=picture(4, (28, 28))),
]


@pytest.fixture
def judge_of(checkpoint: Callable[[str], Path]) -> Callable[[str], Judge]:
    return lambda family: Judge.load(checkpoint(family), device="cpu", dtype="float32")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(tokens of the prefix, its pictures) of each batch whose prefix was computed apart."""
    prefixes: list[tuple[int, int]] = []
    latest: list[shared_prefix.Prefix] = []
    prefix_of, cache = shared_prefix.prefix_of, shared_prefix.DynamicCache

    def noted(*args: Any) -> shared_prefix.Prefix:
        latest[:] = [prefix_of(*args)]
        return latest[0]

    def made(**options: Any) -> Any:
        prefixes.append((latest[0].num_tokens, latest[0].num_pictures))
        return cache(**options)

    monkeypatch.setattr(shared_prefix, "prefix_of", noted)
    monkeypatch.setattr(shared_prefix, "DynamicCache", made)
    return prefixes


def alone(judge: Judge, query: Content, candidates: list[Content]) -> list[float]:
    return [float(judge.scores([(query, candidate)], "Find it:")[0]) for candidate in candidates]


@pytest.mark.parametrize("family", each_family(VLMS))
def test_texts_of_one_query_share_its_text(
    family: str, judge_of: Callable[[str], Judge], shared: list[tuple[int, int]]
) -> None:
    judge, query = judge_of(family), Content(LONG)
    wanted = alone(judge, query, TEXTS)
    shared.clear()
    scores = judge.scores([(query, candidate) for candidate in TEXTS], "Find it:")
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert len(shared) == 1 and shared[0][0] > 80 and np.ptp(scores) > 1e-3


@pytest.mark.parametrize("family", each_family(set(VLMS) - set(UNKNOWN)))
def test_texts_share_the_querys_picture(
    family: str, judge_of: Callable[[str], Judge], shared: list[tuple[int, int]]
) -> None:
    judge, query = judge_of(family), Content(LONG, picture(9, (50, 50)))
    wanted = alone(judge, query, TEXTS)
    shared.clear()
    np.testing.assert_allclose(judge.scores([(query, c) for c in TEXTS], "Find it:"), wanted, atol=1e-5)
    assert [pictures for tokens, pictures in shared] == [1] and shared[0][0] > 80


@pytest.mark.parametrize("family", each_family(set(VLMS) - {"mllama", *UNKNOWN}))
@pytest.mark.parametrize("image", [None, picture(9, (50, 50))])
def test_pictures_share_what_comes_before_them(
    family: str, image: Image.Image | None, judge_of: Callable[[str], Judge], shared: list[tuple[int, int]]
) -> None:
    judge, query = judge_of(family), Content(LONG, image)
    wanted = alone(judge, query, PICTURES)
    shared.clear()
    np.testing.assert_allclose(judge.scores([(query, c) for c in PICTURES], "Find it:"), wanted, atol=1e-5)
    assert all(pictures == (image is not None) and tokens > 80 for tokens, pictures in shared) and shared


@pytest.mark.parametrize("family", ["mllama", *UNKNOWN])
def test_where_a_cache_takes_no_more_pictures_nothing_is_shared(family: str, judge_of: Callable[[str], Judge]) -> None:
    judge, query = judge_of(family), Content(LONG, picture(9, (50, 50)))
    np.testing.assert_allclose(
        judge.scores([(query, c) for c in PICTURES], "Find it:"), alone(judge, query, PICTURES), atol=1e-5
    )


def test_several_queries_in_one_call_keep_their_places(judge_of: Callable[[str], Judge]) -> None:
    judge = judge_of("qwen2_vl")
    queries = [Content(LONG), Content("a cat", picture(1)), Content(LONG + "!")]
    pairs = [(queries[n % 3], candidate) for n, candidate in enumerate(TEXTS * 3)] + [(Content("b"), TEXTS[0])]
    scores = judge.scores(pairs, "Find it:")
    np.testing.assert_allclose(scores, [alone(judge, q, [c])[0] for q, c in pairs], atol=1e-5)


def test_equal_candidates_keep_a_token_of_their_own(judge_of: Callable[[str], Judge]) -> None:
    judge, query = judge_of("llava"), Content(LONG)
    scores = judge.scores([(query, TEXTS[0])] * 3, "Find it:")
    np.testing.assert_allclose(scores, alone(judge, query, [TEXTS[0]]) * 3, atol=1e-5)


def test_a_short_prefix_is_not_worth_a_pass(judge_of: Callable[[str], Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    judge, query = judge_of("llava"), Content("a")
    calls: list[int] = []
    pooled = judge.backbone.pooled

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return pooled(*args, **options)

    monkeypatch.setattr(judge.backbone, "pooled", counted)
    judge.scores([(query, Content("x " * 300)), (query, Content("y " * 300))])
    assert len(calls) == 1
    judge.scores([(Content(LONG), TEXTS[0]), (query, TEXTS[0])])
    assert len(calls) == 2


@pytest.mark.parametrize("family", each_family({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}))
def test_rows_without_pictures_are_right_after_a_pass_with_pictures(
    family: str, judge_of: Callable[[str], Judge]
) -> None:
    judge, query = judge_of(family), Content(LONG)
    wanted = alone(judge, query, TEXTS)
    pairs = [(Content("what", picture(1)), Content("a cat")), *((query, candidate) for candidate in TEXTS)]
    np.testing.assert_allclose(judge.scores(pairs, "Find it:")[1:], wanted, atol=1e-5)


def test_the_tower_runs_once_where_nothing_is_shared(
    judge_of: Callable[[str], Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, counts = judge_of("mllama"), list[int]()
    features = judge.module.features

    def counted(pictures: Any) -> Any:
        counts.append(len(pictures))
        return features(pictures)

    monkeypatch.setattr(judge.module, "features", counted)
    judge.scores([(Content("a", picture(1)), Content("b")), (Content("c", picture(2)), Content("d"))])
    assert sum(counts) == 2
