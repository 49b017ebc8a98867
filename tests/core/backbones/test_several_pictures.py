"""Several pictures in one content: what transformers' own processor and model would give, in any batch."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from mme5core import Content, Encoder
from mme5core.backbones import any_vlm, load_backbone
from mme5core.backbones.loading import load_config
from mme5core.images import BadImage
from mme5core.prompt_styles import render
from tests.core.backbones.families import DUAL, UNKNOWN, VLMS
from tests.core.backbones.processors import processor_of
from tests.core.contents import picture

EncoderOf = Callable[[str], Encoder]
Size = tuple[int, int]
CASES: list[list[Size]] = [[(60, 40), (33, 100)], [(28, 28), (90, 88), (50, 20)]]


def pictures_of(sizes: Sequence[Size]) -> list[Image.Image]:
    return [picture(number, size) for number, size in enumerate(sizes)]


def library_inputs(family: str, encoder: Encoder, checkpoint: Path, content: Content, instruction: str) -> Any:
    """What the library's processor makes of our prompt and the content's pictures."""
    backbone = encoder.backbone
    prompt = render(content, instruction, style="mme5", image_prefix=backbone.image_prefix)
    processor = processor_of(family, checkpoint, backbone)
    return processor(text=[prompt], images=[list(content.images)], return_tensors="pt")


@pytest.mark.parametrize("family", VLMS)
@pytest.mark.parametrize("sizes", CASES, ids=["two", "three"])
def test_tokens_and_embedding_are_those_of_the_published_processor_and_model(
    family: str, sizes: list[Size], encoder_of: EncoderOf, checkpoint: Callable[[str], Path]
) -> None:
    encoder, content = encoder_of(family), Content("a dog on a red sofa", images=pictures_of(sizes))
    inputs = library_inputs(family, encoder, checkpoint(family), content, "Find:")
    assert encoder.token_ids([content], ["Find:"])[0] == inputs["input_ids"][0].tolist()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(family), dtype=torch.float32).eval()
    with torch.inference_mode():
        state = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]
    expected = torch.nn.functional.normalize(state, dim=0).numpy()
    # `embed` runs the tower apart where the family's is known; a batch that shares nothing brings its pixels.
    with_pixels = next(encoder.batches([content], ["Find:"], max_batch_rows=1, max_batch_tokens=9999))
    assert np.abs(encoder.embed([content], "Find:")[0] - expected).max() < 1e-5
    assert np.abs(encoder.embed_batch(with_pixels)[0] - expected).max() < 1e-5
    # Every picture matters, and so does their order; else the equalities would hold for any code.
    first, *others = content.images
    for changed in ([*others, first], [picture(77, sizes[0]), *others], [first, *others[:-1], picture(78, sizes[-1])]):
        other = encoder.embed([Content(content.text, images=changed)], "Find:")[0]
        assert np.abs(other - expected).max() > 1e-4


@pytest.mark.parametrize("family", VLMS)
def test_a_rows_embedding_does_not_depend_on_how_many_pictures_its_batch_mates_have(
    family: str, encoder_of: EncoderOf
) -> None:
    encoder, seen = encoder_of(family), pictures_of([(60, 40), (33, 100), (28, 28)])
    contents = [
        Content(text, images=seen[:count]) if count else Content("no picture")
        for text in ("a cat", "a dog on a red sofa")
        for count in (2, 1, 3, 0)
    ]
    alone = np.concatenate([encoder.embed([content], "Find:") for content in contents])
    assert np.abs(encoder.embed(contents, "Find:") - alone).max() < 1e-5
    assert np.abs(encoder.embed(contents, "Find:", batch_size=3) - alone).max() < 1e-5
    pixels = np.zeros_like(alone)
    for batch in encoder.batches(contents, ["Find:"] * len(contents), max_batch_rows=8, max_batch_tokens=9999):
        pixels[batch.rows] = encoder.embed_batch(batch)
    assert np.abs(pixels - alone).max() < 1e-5


# mllama has a batch for each number of pictures; LLaVA-OneVision reads a picture alone otherwise than among others.
@pytest.mark.parametrize(("family", "towers"), [("qwen2_vl", [2]), ("mllama", [1, 2]), ("llava_onevision", [3])])
def test_a_picture_that_rows_share_or_one_row_shows_twice_runs_through_the_tower_once_a_batch(
    family: str, towers: list[int], encoder_of: EncoderOf, tower_calls: Callable[[Encoder], list[int]]
) -> None:
    encoder, (a, b) = encoder_of(family), pictures_of([(60, 40), (33, 100)])
    contents = [Content("x", images=shown) for shown in ([a, b], [b, a], [a], [a, a])]
    alone = np.concatenate([encoder.embed([content]) for content in contents])
    counts = tower_calls(encoder)
    assert np.abs(encoder.embed(contents) - alone).max() < 1e-5
    assert counts == towers


@pytest.mark.parametrize("places", [[0], [1], [1, 0, 2], [0, 1, 2, 3], [3, 3, 1]])
def test_the_tower_of_llava_onevision_takes_pictures_alone_and_among_others_in_any_mix(
    places: list[int], encoder_of: EncoderOf
) -> None:
    encoder, (a, b) = encoder_of("llava_onevision"), pictures_of([(60, 40), (33, 100)])
    pair = Content(images=[a, b])
    prepared = [
        encoder.prepare_picture(Content(image=a)),
        encoder.prepare_picture(pair, 0),
        encoder.prepare_picture(Content(image=b)),
        encoder.prepare_picture(pair, 1),
    ]
    with torch.inference_mode():
        alone = [encoder.module.features([picture])[0][0] for picture in prepared]
        together = encoder.module.features([prepared[place] for place in places])
    for place, (feature,) in zip(places, together, strict=True):
        assert feature.shape == alone[place].shape and torch.allclose(feature, alone[place], atol=1e-5)
    assert len(alone[1]) == 16 + 1 < len(alone[0])


@pytest.mark.parametrize("family", ["mllama", "qwen2_vl", "idefics3"])
def test_of_many_pictures_none_is_cut_and_the_text_is_as_long_as_beside_one(
    family: str, encoder_of: EncoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = encoder_of(family)
    monkeypatch.setattr(encoder, "max_tokens", 9)
    text, shown, prefix = "a dog on a red sofa, asleep, " * 9, picture(0, (28, 28)), encoder.backbone.image_prefix
    one, many = encoder.token_ids([Content(text, shown), Content(text, images=[shown] * 40)], [None, None])
    uncut, bare = (encoder.backbone.tokenizer(prompt)["input_ids"] for prompt in (prefix + text, prefix))
    assert many.count(encoder.backbone.image_token_id) == 40 * one.count(encoder.backbone.image_token_id)
    kept = uncut[len(bare) : 9]
    assert kept and one[-len(kept) :] == many[-len(kept) :] == kept


@pytest.mark.parametrize("family", DUAL)
def test_a_family_that_takes_one_picture_refuses_more_with_its_name(family: str, encoder_of: EncoderOf) -> None:
    encoder, shown = encoder_of(family), pictures_of([(60, 40), (33, 100)])
    contents = [Content("a cat"), Content("a", images=shown), Content(image=shown[0])]
    message = f"too_many_pictures: 2 pictures in one content; {encoder.backbone.family} takes 1"
    for refused in (encoder.embed, lambda contents: encoder.token_ids(contents, [None] * 3)):
        with pytest.raises(ValueError, match=f"content 1: {message}"):
            refused(contents)
    reported: list[tuple[int, str]] = []

    def report(place: int, error: BadImage) -> None:
        reported.append((place, str(error)))

    stream = encoder.stream(contents, [None] * 3, max_batch_rows=8, max_batch_tokens=99, on_bad=report)
    kept = [row for rows, _ in stream for row in rows]
    assert sorted(kept) == [0, 2] and reported == [(1, message)]


@pytest.mark.parametrize("family", UNKNOWN)
def test_a_family_that_was_never_compared_takes_one_picture(
    family: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(checkpoint(family))
    assert load_backbone(base, load_config(base)).max_pictures is None
    monkeypatch.setattr(any_vlm, "_TAKE_SEVERAL", frozenset())
    assert load_backbone(base, load_config(base)).max_pictures == 1


def test_a_row_of_many_bad_pictures_is_reported_once(encoder_of: EncoderOf) -> None:
    reported: list[int] = []
    whole = picture_bytes(picture(0))
    contents = [Content(images=[whole[: 90 + number] for number in range(8)]), Content("a cat")]
    options: dict[str, Any] = {"max_batch_rows": 8, "max_batch_tokens": 9999, "num_threads": 4}
    stream = encoder_of("qwen2_vl").stream(contents, [None] * 2, on_bad=lambda row, _: reported.append(row), **options)
    kept = [row for rows, _ in stream for row in rows]
    assert (kept, reported) == ([1], [0])


@pytest.mark.parametrize("family", ["qwen2_vl", "mllama"])
def test_one_bad_picture_of_several_refuses_its_rows_and_no_other(family: str, encoder_of: EncoderOf) -> None:
    encoder, (a, b) = encoder_of(family), pictures_of([(60, 40), (33, 100)])
    broken = picture_bytes(a)[:90]
    contents = [Content("x", images=shown) for shown in ([a, broken], [a, b], [broken, broken], [b, a])]
    reported: list[tuple[int, str]] = []
    vectors = {}
    for rows, vector_BD in encoder.stream(
        contents,
        [None] * 4,
        max_batch_rows=8,
        max_batch_tokens=9999,
        on_bad=lambda place, error: reported.append((place, error.reason)),
    ):
        vectors |= dict(zip(rows, vector_BD, strict=True))
    assert sorted(reported) == [(0, "broken_image"), (2, "broken_image")]
    assert sorted(vectors) == [1, 3]
    assert np.abs(vectors[3] - encoder.embed([contents[3]])[0]).max() < 1e-5


def picture_bytes(shown: Image.Image) -> bytes:
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    return buffer.getvalue()
