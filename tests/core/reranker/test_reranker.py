"""The pointwise reranker: the judge's order, and scores that still differ where the judge is sure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mme5core import Content
from mme5core.judge import Judge
from mme5core.judge.local import yes_share
from mme5core.reranker import Reranker
from tests.core.contents import picture

CANDIDATES = [Content("a cat"), Content("a dog on a sofa"), Content("x"), Content("a", picture(1))]


@pytest.fixture
def base(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("qwen2_vl")


def test_scores_are_the_log_odds_of_the_judges_shares(base: Path) -> None:
    query = Content("an animal", picture(2))
    scores = Reranker.load(base, device="cpu", dtype="float32").scores(query, CANDIDATES, "Find it:")
    shares = Judge.load(base, device="cpu", dtype="float32").scores([(query, c) for c in CANDIDATES], "Find it:")
    assert scores.dtype == np.float32 and scores.shape == (4,) and len(set(scores.tolist())) == 4
    np.testing.assert_allclose(scores, np.log(shares / (1 - shares)), atol=1e-4)


def test_sure_candidates_keep_an_order_and_shares_stay_inside() -> None:
    log_odds = np.array([-200, -90, 0, 90, 200, np.nan], np.float32)
    shares = yes_share(log_odds)
    assert ((shares[:5] > 0) & (shares[:5] < 1)).all() and np.isnan(shares[5]) and shares[2] == 0.5


def test_no_candidates_are_no_scores_and_a_bad_one_is_named_by_its_place(base: Path) -> None:
    reranker = Reranker.load(base, device="cpu", dtype="float32")
    assert reranker.scores(Content("a"), []).shape == (0,)
    with pytest.raises(ValueError, match="pair 1: not_an_image"):
        reranker.scores(Content("a"), [Content("b"), Content(image=b"no picture")])
