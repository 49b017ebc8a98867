"""How pictures are read by choice: squares of a side, positions in a row; stored with the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from mme5core import Content, Encoder
from mme5core.judge import Judge
from mme5core.model_folder import ENCODER_FILE
from tests.core.contents import mixed, picture

Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_in_a_row_are_those_of_a_model_that_is_given_them(family: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint(family)
    encoder = Encoder.load(folder, device="cpu", dtype="float32", positions="in_a_row", prompt_style="unime-v2")
    contents = [Content("a cat on a sofa", picture(n, (40 + 30 * n, 60))) for n in range(3)]
    vectors = encoder.embed(contents, "Find:")
    whole = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    for content, vector in zip(contents, vectors, strict=True):
        ids = encoder.token_ids([content], ["Find:"])
        inputs = encoder.backbone.collate(ids, [[encoder.prepare_picture(content)]])
        inputs = encoder.module.on_device(inputs)
        row = torch.arange(len(ids[0])).expand(3, 1, -1)
        with torch.inference_mode():
            state = whole(**inputs, position_ids=row, use_cache=False).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(state, dim=0).numpy(), atol=1e-5)
    own = Encoder.load(folder, device="cpu", dtype="float32", prompt_style="unime-v2").embed(contents, "Find:")
    assert np.abs(own - vectors).max() > 1e-3
    texts = [Content("a cat"), Content("a dog")]
    np.testing.assert_array_equal(
        encoder.embed(texts), Encoder.load(folder, device="cpu", dtype="float32", prompt_style="unime-v2").embed(texts)
    )


def test_a_shared_prefix_keeps_positions_in_a_row(checkpoint: Checkpoint) -> None:
    judge = Judge.load(checkpoint("qwen2_vl"), device="cpu", dtype="float32")
    judge.backbone.positions_of_tokens = "in_a_row"
    query = Content("a long question about what is to be seen here " * 4, picture(1))
    together = judge.scores([(query, Content(text)) for text in ("a", "b c d", "e")])
    alone = [judge.scores([(query, Content(text))])[0] for text in ("a", "b c d", "e")]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama", "llava_next"])
def test_pictures_of_a_side_are_squares_whatever_their_shape(family: str, checkpoint: Checkpoint) -> None:
    encoder = Encoder.load(checkpoint(family), device="cpu", dtype="float32", picture_side=56)
    by_hand = Encoder.load(checkpoint(family), device="cpu", dtype="float32")
    contents = [content for content in mixed() if content.images]
    squares = [Content(content.text, content.images[0].resize((56, 56))) for content in contents]  # type: ignore[union-attr]
    np.testing.assert_allclose(encoder.embed(contents), by_hand.embed(squares), atol=1e-6)


def test_how_pictures_are_read_is_stored_with_the_model_and_only_where_it_was_chosen(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    chosen = Encoder.load(checkpoint("qwen2_vl"), device="cpu", picture_side=56, positions="in_a_row")
    chosen.save(tmp_path / "chosen")
    again = Encoder.load(tmp_path / "chosen", device="cpu")
    np.testing.assert_array_equal(again.embed(mixed()), chosen.embed(mixed()))
    Encoder.load(checkpoint("qwen2_vl"), device="cpu").save(tmp_path / "plain")
    settings = json.loads((tmp_path / "plain" / ENCODER_FILE).read_text())
    assert not {"picture_side", "positions"} & settings.keys()


def test_positions_that_a_family_does_not_have_are_refused(checkpoint: Checkpoint) -> None:
    for family, positions in (("mllama", "in_a_row"), ("qwen2_vl", "flat")):
        with pytest.raises(ValueError, match=f"positions={positions}: {family} has only 'own'"):
            Encoder.load(checkpoint(family), device="cpu", positions=positions)
