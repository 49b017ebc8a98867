"""A judge at a server: what is asked, how logprobs become scores, and that they are those of the same weights here."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mme5core import Content
from mme5core.asking.answer import answer_of
from mme5core.asking.question import Unsuitable
from mme5core.asking.request import PLAIN, Request, Sampling
from mme5core.judge import Judge
from mme5core.judge.answering import AnsweringModel
from mme5core.judge.prompt import plain_text
from mme5core.judge.served import JudgeQuestion, judge_request, score_of
from mme5core.reranker.training import load_reranker
from mme5core.training.process import train_process
from mme5core.types import Rejected
from tests.core.contents import picture
from tests.core.reranker.test_training import new_run

QUESTION = JudgeQuestion(Path("samples"), None)
SAMPLING = Sampling(1.0, 1)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def completion(top: list[tuple[str, float]] | None, **choice: Any) -> dict[str, Any]:
    logprobs = None if top is None else {"content": [{"top_logprobs": [{"token": t, "logprob": p} for t, p in top]}]}
    message = {"role": "assistant", "content": "Yes"}
    return {"choices": [{"message": message, "finish_reason": "length", "logprobs": logprobs} | choice]}


def verdict(top: list[tuple[str, float]] | None, **choice: Any) -> Any:
    answer = answer_of(completion(top, **choice), "m", form=PLAIN)
    return QUESTION.verdict(answer.record("", 0, None), {"id": "s1/0"})


def test_pictures_stand_where_the_local_judge_shows_them_and_one_token_with_20_logprobs_is_asked_for() -> None:
    first, second = png(1), png(2)
    request = judge_request(Content("what changed?", first), Content("this", second), "Find:")
    body = request.body("m", SAMPLING, form=PLAIN)
    assert [part["type"] for part in body["messages"][0]["content"]] == [
        "text",
        "image_url",
        "text",
        "image_url",
        "text",
    ]
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["logprobs"] is True and body["top_logprobs"] == 20 and body["max_tokens"] == 1
    assert "response_format" not in body and body["temperature"] == 1.0
    texts = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
    assert texts[1] == "Find: what changed?\n\nCandidate:\n"
    other = judge_request(Content("what changed?", second), Content("this", first), "Find:")
    keys = {r.key("m", SAMPLING) for r in (request, other, judge_request(Content("x", first), Content("y"), None))}
    assert len(keys) == 3


def test_the_same_pictures_at_other_places_are_another_request() -> None:
    by_place = [Request.of_parts(parts, top_logprobs=20) for parts in ([b"p", "ab"], ["ab", b"p"], ["a", b"p", "b"])]
    assert len({request.key("m", SAMPLING) for request in by_place}) == 3


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        ([("Yes", -0.5), ("No", -1.5)], 1 / (1 + math.exp(-1.0))),
        ([(" Yes", -0.5), ("No", -1.5), ("Yes", -9.0)], 1 / (1 + math.exp(-1.0))),  # the likelier spelling
        ([("Yes", -0.1), ("Maybe", -3.0)], 1 / (1 + math.exp(-2.9))),  # No is less likely than all that are there
        ([("Y", -1.0), ("N", -1.0)], 0.5),
        ([("Yes", 0.0), ("No", -9999.0)], 1 - np.finfo(np.float32).eps),
    ],
)
def test_the_score_is_the_share_of_yes(top: list[tuple[str, float]], expected: float) -> None:
    assert score_of(top) == pytest.approx(expected, rel=1e-6)
    assert verdict(top) == [pytest.approx(expected, rel=1e-6)]


def test_answers_that_give_no_score_are_refused_or_stop_the_asking() -> None:
    assert isinstance(verdict(None), Unsuitable)
    assert isinstance(verdict([]), Unsuitable)
    assert isinstance(verdict([("Yes", -0.01)]), Unsuitable)  # nothing to compare it with
    assert score_of([("Yes", -math.inf), ("No", -math.inf)]) is None
    assert isinstance(verdict([("Yes", float("nan")), ("No", 3.0)]), Unsuitable)  # no logarithms of probabilities
    refused = verdict([("Hm", -0.1), ("YES", -2.0)])
    assert isinstance(refused, Rejected) and refused.reason == "no_yes_or_no" and "'Hm', 'YES'" in refused.detail
    filtered = verdict(None, finish_reason="content_filter")
    assert isinstance(filtered, Rejected) and filtered.reason == "content_filter"


def serve(model: AnsweringModel, body: dict[str, Any]) -> dict[str, Any]:
    """The completion that a server of this model gives: its prompt, and the 20 likeliest tokens after it."""
    parts: list[str | None] = []
    images = []
    for part in body["messages"][0]["content"]:
        if part["type"] == "text":
            parts.append(part["text"])
        else:
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            images.append(Image.open(io.BytesIO(data)))
            parts.append(None)
    backbone = model.backbone
    ids = model.prompts.token_ids([plain_text(parts, backbone.image_prefix)], [[image.size for image in images]])
    prepared = [backbone.prepare_picture(image, is_one_of_several=len(images) > 1) for image in images]
    inputs = model.module.on_device(backbone.collate(ids, [prepared] if prepared else None))
    with torch.inference_mode():
        logprobs = model.logits(backbone.pooled(model.module.model, inputs)).log_softmax(dim=1)[0]
    top = logprobs.topk(20)
    tokens = [backbone.tokenizer.decode([token]) for token in top.indices.tolist()]
    return completion(list(zip(tokens, top.values.tolist(), strict=True)))


def test_server_and_local_scores_agree_on_the_same_weights(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    # Trained for a moment: of random weights neither word would be among the 20 likeliest.
    run = new_run(checkpoint("qwen2_vl"), tmp_path / "run", num_steps=12, list_weight=0.0, save_every=99)
    train_process(run, load=load_reranker)
    model = AnsweringModel.load(run.folder / "model", device="cpu", dtype="float32")
    pairs = [
        (Content(f"cat number {n}", png(n) if n % 2 else None), Content(f"a dog {n}", png(9 + n) if n % 3 else None))
        for n in range(6)
    ]
    local = Judge(model).scores(pairs, "Find:")
    served = []
    for query, candidate in pairs:
        body = judge_request(query, candidate, "Find:").body("m", SAMPLING, form=PLAIN)
        answer = answer_of(serve(model, body), "m", form=PLAIN).record("", 0, None)
        served.append(QUESTION.verdict(answer, {"id": "x"})[0])  # type: ignore[index]
    np.testing.assert_allclose(served, local, atol=1e-5)
    assert len({round(score, 4) for score in served}) > 1
