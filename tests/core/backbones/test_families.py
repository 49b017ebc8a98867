"""Every family: batch mates do not matter, tokens are the processor's own, the tower may run apart."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaNextProcessor

from mme5core import Content, Encoder
from mme5core.backbones import BACKBONES, load_backbone
from mme5core.backbones.loading import load_config
from mme5core.encoder.prepare import PreparedBatch
from mme5core.model_folder import model_width
from tests.core.backbones.families import DUAL, FAMILIES, UNKNOWN, VLMS
from tests.core.contents import SIZES, mixed, picture

EncoderOf = Callable[[str], Encoder]
KNOWN_VLMS = [name for name in VLMS if name in BACKBONES]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rows_embedding_does_not_depend_on_its_batch_mates(family: str, encoder_of: EncoderOf) -> None:
    encoder, contents = encoder_of(family), mixed()
    alone = np.concatenate([encoder.embed([content], "Find:") for content in contents])
    together = encoder.embed(contents, "Find:")
    order = np.random.default_rng(0).permutation(len(contents))
    shuffled = encoder.embed([contents[place] for place in order], "Find:", batch_size=3)
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(shuffled - alone[order]).max() < 1e-5
    # Texts and pictures matter at all; else the equalities above would hold for any code.
    apart = np.abs(alone[:, None] - alone[None]).max(axis=2)[~np.eye(len(contents), dtype=bool)]
    assert apart.min() > 1e-2


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in UNKNOWN])
def test_the_tower_may_run_apart_and_once_for_a_picture_that_several_rows_share(
    family: str, encoder_of: EncoderOf
) -> None:
    encoder = encoder_of(family)
    # One of four tiles, one that fits in one tile: what of the canvas is padding must not matter.
    contents = [Content(text, picture(seed, SIZES[seed])) for seed in (0, 3) for text in ("a cat", "x")]
    prepared = [encoder.prepare_picture(contents[0]), encoder.prepare_picture(contents[2])]
    ids = encoder.token_ids(contents, [None] * 4)
    with torch.inference_mode():
        whole = encoder.backbone.collate(ids, [[prepared[0]]] * 2 + [[prepared[1]]] * 2)
        expected = encoder.module.embed_batch(PreparedBatch([0, 1, 2, 3], whole)).numpy()
        first, second = encoder.module.features(prepared)
        inputs = encoder.backbone.collate(ids, [[prepared[0]]] * 2 + [[prepared[1]]] * 2)
        del inputs["pixel_values"]  # nothing may need it any more
        pooled = encoder.backbone.pooled(encoder.module.model, inputs, [[first], [first], [second], [second]])
    found = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_share_a_picture_get_their_vectors_and_its_tower_runs_once(
    family: str, encoder_of: EncoderOf, tower_calls: Callable[[Encoder], list[int]]
) -> None:
    encoder = encoder_of(family)
    texts = ["a cat", "x", "a dog on a red sofa", "un gatto"]
    contents = [Content(text, picture(seed, SIZES[seed])) for text in texts for seed in (0, 2)]
    alone = np.concatenate([encoder.embed([content]) for content in contents])
    towers = tower_calls(encoder)
    together = encoder.embed([Content("no picture"), *contents])[1:]
    assert np.abs(together - alone).max() < 1e-5
    assert towers == ([] if family in UNKNOWN else [2])


@pytest.mark.parametrize("family", ["mllama", "qwen2_vl"])
def test_threads_that_embed_side_by_side_get_the_vectors_of_one(family: str, encoder_of: EncoderOf) -> None:
    encoder = encoder_of(family)
    contents = [Content(image=picture(seed)) for seed in range(24)]
    expected = encoder.embed(contents)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda content: encoder.embed([content])[0], contents))
    assert np.abs(np.array(found) - expected).max() < 1e-5


@pytest.mark.parametrize("family", VLMS)
@pytest.mark.parametrize("size", [(50, 70), (28, 28), (84, 28)])
def test_the_embedding_is_the_normed_last_state_of_the_whole_published_model(
    family: str, size: tuple[int, int], encoder_of: EncoderOf, checkpoint: Callable[[str], Path]
) -> None:
    encoder = encoder_of(family)
    content = Content("a dog on a red sofa", picture(3, size))
    batch = next(encoder.batches([content], ["Find:"], max_batch_rows=1, max_batch_tokens=9999))
    inputs = encoder.backbone.float_pixels(batch.inputs)
    inputs |= getattr(encoder.backbone, "extra_inputs", lambda _: {})(inputs)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(family), dtype=torch.float32).eval()
    with torch.inference_mode():
        state = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]
    expected = torch.nn.functional.normalize(state, dim=0).numpy()
    assert np.abs(encoder.embed([content], "Find:")[0] - expected).max() < 1e-5


@pytest.mark.parametrize("family", KNOWN_VLMS)
@pytest.mark.parametrize("size", [*SIZES, (200, 1), (1, 200), (3, 500), (1, 1), (401, 2)])
def test_a_picture_of_any_size_takes_as_many_tokens_as_its_tower_gives(
    family: str, size: tuple[int, int], encoder_of: EncoderOf
) -> None:
    encoder = encoder_of(family)
    assert np.isfinite(encoder.embed([Content("x", picture(0, size))])).all()
    if family != "mllama":
        ids = encoder.token_ids([Content("x", picture(0, size))], [None])[0]
        with torch.inference_mode():
            ((features, *_),) = encoder.module.features([encoder.prepare_picture(Content(image=picture(0, size)))])
        assert ids.count(encoder.backbone.image_token_id) == len(features)  # type: ignore[attr-defined]


def test_llava_next_expands_a_picture_as_its_own_processor_does(
    encoder_of: EncoderOf, checkpoint: Callable[[str], Path]
) -> None:
    encoder = encoder_of("llava_next")
    processor = LlavaNextProcessor(
        encoder.backbone.image_processor,  # type: ignore[attr-defined]
        encoder.backbone.tokenizer,  # type: ignore[attr-defined]
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    for size in SIZES:
        expected = processor(text="<image>\na cat", images=picture(0, size))["input_ids"][0]
        assert encoder.token_ids([Content("a cat", picture(0, size))], [None])[0] == list(expected)


def test_texts_are_cut_but_pictures_never(encoder_of: EncoderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of("qwen2_vl")
    monkeypatch.setattr(encoder, "max_tokens", 8)
    text = "a dog on a red sofa, asleep, " * 20
    assert len(encoder.token_ids([Content(text)], [None])[0]) == 8
    image_id = encoder.backbone.image_token_id  # type: ignore[attr-defined]
    row = encoder.token_ids([Content(text, picture(0, (90, 88)))], [None])[0]
    assert len(row) - row.count(image_id) == 7 and row.count(image_id) > 8


def test_a_dual_encoder_sums_the_unit_vectors_of_text_and_picture(encoder_of: EncoderOf) -> None:
    for family in DUAL:
        encoder = encoder_of(family)
        text, image, both = encoder.embed([Content("a cat"), Content(image=picture(1)), Content("a cat", picture(1))])
        expected = (text + image) / np.linalg.norm(text + image)
        assert np.abs(both - expected).max() < 1e-6


def test_a_dual_encoder_reads_no_instruction_unless_told_to(encoder_of: EncoderOf) -> None:
    encoder = encoder_of("clip")
    assert encoder.prompt_style == "plain"
    plain, told = encoder.embed([Content("a cat")]), encoder.embed([Content("a cat")], "Find the picture:")
    assert np.array_equal(plain, told)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_width_is_known_without_loading_the_model(
    family: str, encoder_of: EncoderOf, checkpoint: Callable[[str], Path]
) -> None:
    assert model_width(checkpoint(family)) == encoder_of(family).embed([Content("x")]).shape[1]


def test_two_families_are_ones_of_which_no_file_knows_the_name() -> None:
    assert set(UNKNOWN) == VLMS.keys() - BACKBONES.keys()


def test_a_model_without_pictures_is_refused(checkpoint: Callable[[str], Path]) -> None:
    config: Any = load_config(str(checkpoint("llava"))).text_config
    with pytest.raises(ValueError, match=r"is a 'llama', which takes no pictures; known families: \['clip'"):
        load_backbone(str(checkpoint("llava")), config)
