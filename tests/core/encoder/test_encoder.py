"""The encoder on a real mllama of random weights: what it sees, and that batch mates do not matter."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mme5core import Content, Encoder
from mme5core.backbones.protocol import CHARACTERS_PER_TOKEN, truncated_ids
from mme5core.images import load_rgb
from tests.core.backbones.families import build
from tests.core.contents import mixed, picture


@pytest.fixture(scope="module")
def encoder(base: Path) -> Encoder:
    return Encoder.load(base)


def test_a_rows_embedding_does_not_depend_on_its_batch_mates(encoder: Encoder) -> None:
    contents = mixed()
    alone = np.concatenate([encoder.embed([content]) for content in contents])
    together = encoder.embed(contents)
    order = np.random.default_rng(0).permutation(len(contents))
    shuffled = encoder.embed([contents[place] for place in order], batch_size=3)
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(shuffled - alone[order]).max() < 1e-5
    # Pictures matter at all: with closed gates the equalities above would hold for any code.
    assert np.abs(alone[4] - alone[5]).max() > 1e-2


WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None
import numpy as np
from mme5core import Content, Encoder
from tests.core.contents import picture
np.save(sys.argv[2], Encoder.load(sys.argv[1]).embed([Content(image=picture(n)) for n in range(3)]))
"""


def test_a_pictures_vector_does_not_depend_on_whether_torchvision_is_installed(
    encoder: Encoder, base: Path, tmp_path: Path
) -> None:
    # It can differ only where torchvision is installed; `make test-matrix` runs it there.
    subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION, str(base), str(tmp_path / "v.npy")], check=True)
    vectors = encoder.embed([Content(image=picture(n)) for n in range(3)])
    assert vectors.tobytes() == np.load(tmp_path / "v.npy").tobytes()


def test_vectors_are_float32_of_unit_length_in_the_callers_order(encoder: Encoder) -> None:
    vectors = encoder.embed(mixed())
    assert vectors.dtype == np.float32 and vectors.shape == (len(mixed()), encoder.dimension)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert encoder.embed([]).shape == (0, encoder.dimension)


def test_the_tokens_are_those_that_the_published_processor_makes(encoder: Encoder, base: Path) -> None:
    processor = AutoProcessor.from_pretrained(base)
    ids = encoder.token_ids([Content("a cat"), Content("a cat", picture(1))], [None, "Find:"])
    assert ids[0] == processor(text="a cat")["input_ids"][0]
    expected = processor(text="<|image|><|begin_of_text|>Find: a cat\n", images=picture(1))["input_ids"][0]
    assert ids[1] == list(expected)
    bos, image = encoder.backbone.tokenizer.bos_token_id, encoder.backbone.image_token_id  # type: ignore[attr-defined]
    assert ids[0][:2] == [bos, bos] and ids[1][:3] == [bos, image, bos]


def test_the_embedding_is_the_normed_last_state_of_the_whole_published_model(encoder: Encoder, base: Path) -> None:
    processor = AutoProcessor.from_pretrained(base, backend="pil")  # torchvision's rounds otherwise
    model = AutoModelForImageTextToText.from_pretrained(base).eval()
    inputs = processor(
        text="<|image|><|begin_of_text|>Represent the given image.\n", images=picture(2), return_tensors="pt"
    )
    with torch.inference_mode():
        state = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    expected = torch.nn.functional.normalize(state, dim=0).numpy()
    found = encoder.embed([Content(image=picture(2))], "Represent the given image.")[0]
    assert np.abs(found - expected).max() < 1e-5


def test_padding_on_the_left_finds_the_same_last_token(encoder: Encoder) -> None:
    batch = next(
        iter(encoder.batches([Content("a cat"), Content("a")], [None] * 2, max_batch_rows=2, max_batch_tokens=99))
    )
    right = encoder.embed_batch(batch)
    mask = batch.inputs["attention_mask"]
    moved = {name: torch.stack([row.roll(int((m == 0).sum())) for row, m in zip(v, mask, strict=True)])
             for name, v in batch.inputs.items()}  # fmt: skip
    moved["position_ids"] = (moved["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert np.abs(encoder.embed_batch(replace(batch, inputs=moved)) - right).max() < 1e-5


def test_a_picture_is_the_same_as_path_bytes_and_pil(encoder: Encoder, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    (tmp_path / "p.png").write_bytes(buffer.getvalue())
    forms = [picture(3), buffer.getvalue(), str(tmp_path / "p.png"), tmp_path / "p.png"]
    vectors = encoder.embed([Content(image=form) for form in forms])
    assert np.abs(vectors - vectors[0]).max() == 0


@pytest.mark.parametrize("size", [(64, 1), (64, 3), (1, 64), (3, 64), (1, 1), (5000, 1)])
def test_slivers_are_read_as_pictures_and_not_as_channels(encoder: Encoder, size: tuple[int, int]) -> None:
    inputs = encoder.backbone.prepare_picture(load_rgb(picture(4, size)))
    assert inputs["pixel_values"].shape[-3] == 3
    red = encoder.backbone.prepare_picture(Image.new("RGB", size, (255, 0, 0)))["pixel_values"]
    assert red[..., 0, 0, 0].item() > red[..., 1, 0, 0].item()


def test_a_bad_picture_is_named_by_its_place(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="content 1: not_an_image"):
        encoder.embed([Content("a"), Content(image=b"no picture")])


def test_instructions_are_one_for_all_or_one_each(encoder: Encoder) -> None:
    contents = [Content("a cat"), Content("a dog")]
    one, each = encoder.embed(contents, "Find:"), encoder.embed(contents, ["Find:", None])
    assert np.abs(one[0] - each[0]).max() < 1e-6 and np.abs(one[1] - each[1]).max() > 1e-3
    with pytest.raises(ValueError, match="1 instructions for 2 contents"):
        encoder.embed(contents, ["Find:"])


def test_a_text_with_the_token_for_a_picture_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=r"content 1: picture_token_in_text"):
        encoder.embed([Content("a cat"), Content("a <|image|> cat")])
    told: list[tuple[int, str]] = []
    contents = [Content("a <|image|> cat", picture(1)), Content("a cat")]
    rows = [
        row
        for batch in encoder.batches(
            contents,
            [None, None],
            max_batch_rows=2,
            max_batch_tokens=99,
            on_bad=lambda place, error: told.append((place, error.reason)),
        )
        for row in batch.rows
    ]
    assert rows == [1] and told == [(0, "picture_token_in_text")]


def test_an_instruction_with_the_token_for_a_picture_is_refused_like_a_text(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match=r"content 0: picture_token_in_text"):
        encoder.embed([Content("a cat")], "Find <|image|>:")
    encoder.embed([Content("a cat", picture(1))], "Find:")  # the picture's own mark is no such token


@pytest.mark.parametrize("family", ["clip", "qwen2_vl"])
def test_truncated_prompts_are_told_and_no_others(family: str, tmp_path: Path) -> None:
    build(family, tmp_path / family)
    encoder = Encoder.load(tmp_path / family)
    encoder.max_tokens = 12
    texts = [" ".join(["cat"] * count) for count in range(1, 30)]
    whole = [len(encoder.backbone.tokenizer(text)["input_ids"]) for text in texts]
    assert min(whole) < 12 < max(whole) and 12 in whole  # at the limit, one below and some above
    cut: list[int] = []
    options = {"max_batch_rows": 8, "max_batch_tokens": 999, "on_cut": cut.append}
    list(encoder.batches([Content(text) for text in texts], [None] * len(texts), **options))
    assert sorted(cut) == [row for row, count in enumerate(whole) if count > 12]
    cut.clear()
    list(encoder.batches([Content(image=picture(1))], [None], **options))
    assert not cut  # the tokens that stand for a picture are not text


def test_a_text_of_megabytes_has_the_tokens_of_its_beginning(encoder: Encoder) -> None:
    class Counting:
        def __init__(self) -> None:
            self.longest = 0

        def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
            self.longest = max(self.longest, *map(len, texts))
            return encoder.backbone.tokenizer(texts, **options)

    text, counting = "a cat on the mat " * 100_000, Counting()
    (ids,) = truncated_ids(counting, [text], 50)
    assert ids == encoder.backbone.tokenizer([text], truncation=True, max_length=50)["input_ids"][0]
    assert counting.longest <= 50 * CHARACTERS_PER_TOKEN


def test_a_text_of_many_characters_a_token_is_tokenised_whole() -> None:
    def by_lines(texts: list[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(line) for line in text.splitlines()][:max_length] for text in texts]}

    text = "\n".join("x" * 1_000 for _ in range(9))
    assert truncated_ids(by_lines, [text, "a\nb"], 5) == [[1_000] * 5, [1, 1]]


def test_what_is_no_content_is_named_with_what_is_expected(encoder: Encoder) -> None:
    with pytest.raises(TypeError, match=r"content 1: Content\(text=..., image=...\) expected, not str"):
        encoder.embed([Content("a cat"), "a cat"])  # type: ignore[list-item]
