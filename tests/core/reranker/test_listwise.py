"""Lists: each candidate's score is the probability of its number, by the logits of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from mme5core import Content
from mme5core.judge.answering import AnsweringModel
from mme5core.reranker import Reranker
from mme5core.reranker.answer_trie import AnswerTrie
from mme5core.reranker.listwise import ListAnswers
from tests.core.contents import picture
from tests.core.judge.families import each_family

Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize("family", each_family(["qwen2_vl", "mllama", "llava_onevision"]))
@pytest.mark.parametrize("count", [3, 12])
def test_scores_are_the_shares_of_the_numbers_by_the_whole_models_logits(
    family: str, count: int, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(family)
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model = AnsweringModel.load(folder, device="cpu", dtype="float32")
    query = Content("what changed?", picture(1))
    candidates = [Content(f"a cat of {n}", picture(n, (30, 60)) if n % 2 else None) for n in range(count)]
    scores = Reranker(model, "listwise").scores(query, candidates, "Find:")
    assert scores.dtype == np.float32 and scores.shape == (count,)
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-5)

    prompt = model.prompts.several(query, candidates, "Find:")
    images = [*query.images, *(image for candidate in candidates for image in candidate.images)]
    (ids,) = model.prompts.token_ids([prompt], [[image.size for image in images]])
    prepared = [model.backbone.prepare_picture(image, is_one_of_several=True) for image in images]
    answers = [ListAnswers(model).tokens(number) for number in range(1, count + 1)]
    extra = getattr(model.backbone, "extra_inputs", lambda inputs: {})

    def log_share(before: tuple[int, ...], token: int) -> float:
        """Among all answers that begin with the tokens before, from one row of its own."""
        allowed = sorted({a[len(before)] for a in answers if a[: len(before)] == before})
        inputs = model.module.on_device(model.backbone.collate([[*ids, *before]], [prepared]))
        with torch.inference_mode():
            logits = whole(**inputs, **extra(inputs), use_cache=False).logits[0, -1]
        return float(logits[allowed].double().log_softmax(dim=0)[allowed.index(token)])

    expected = [sum(log_share(a[:n], a[n]) for n in range(len(a))) for a in (answers[0], answers[-1])]
    np.testing.assert_allclose(scores[[0, -1]], expected, atol=1e-4)


def test_one_candidate_is_sure_and_none_are_no_scores(checkpoint: Checkpoint) -> None:
    reranker = Reranker.load(checkpoint("qwen2_vl"), device="cpu", method="listwise")
    assert reranker.scores(Content("a"), []).shape == (0,)
    assert reranker.scores(Content("a"), [Content("b")]).tolist() == [0]


def test_a_list_that_cannot_be_shown_is_nan_or_raises(checkpoint: Checkpoint) -> None:
    reranker = Reranker.load(checkpoint("llava_next"), device="cpu", method="listwise")
    candidates = [Content("a"), Content(image=b"no picture")]
    assert np.isnan(reranker.scores_or_nan(Content("a"), candidates)).all()
    with pytest.raises(ValueError, match="the list of 2 candidates: not_an_image"):
        reranker.scores(Content("a"), candidates)


def test_an_unknown_method_is_named(checkpoint: Checkpoint) -> None:
    with pytest.raises(ValueError, match="unknown method 'setwise'; known: pointwise, listwise"):
        Reranker.load(checkpoint("qwen2_vl"), device="cpu", method="setwise")  # type: ignore[arg-type]


def test_a_trie_branches_where_answers_differ_and_refuses_one_that_begins_with_another() -> None:
    digits = [(9, *map(int, str(number)), 8) for number in range(1, 13)]
    trie = AnswerTrie.of(digits)
    assert trie.branches == {(9,): tuple(range(1, 10)), (9, 1): (0, 1, 2, 8)}
    assert trie.choices((9, 1, 2, 8)) == [((9,), 1), ((9, 1), 2)]
    assert trie.choices((9, 3, 8)) == [((9,), 3)]
    for answers in ([(1,), (1, 2)], [(1, 2), (1, 2)]):
        with pytest.raises(ValueError, match="cannot be told apart"):
            AnswerTrie.of(answers)
