"""Models of sentence-transformers behind the encoder's interface, saved and loaded by that library itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast

from mme5core import Content
from mme5core.peers import SentenceTransformerEncoder, sentence_transformer_width
from tests.core.backbones.families import build
from tests.core.contents import mixed, picture


@pytest.fixture(scope="module")
def texts_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with mean pooling, as most text models of the library are."""
    folder = tmp_path_factory.mktemp("peer")
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *[f"##{letter}" for letter in letters]]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    SentenceTransformer(modules=[Transformer(str(folder / "bert")), Pooling(32)], device="cpu").save(str(folder / "st"))
    return folder / "st"


def test_vectors_are_those_of_the_library_in_the_callers_places(texts_only: Path) -> None:
    texts = ["a cat", "a dog on a red sofa", "x", "abc " * 30]
    instructions = [None, "find: ", "find: ", None]
    encoder = SentenceTransformerEncoder(str(texts_only), device="cpu")
    found = np.zeros((len(texts), encoder.dimension), np.float32)
    for places, vectors in encoder.stream([Content(text) for text in texts], instructions, max_batch_rows=2):
        found[places] = vectors
    library = SentenceTransformer(str(texts_only), device="cpu")
    for place, (text, instruction) in enumerate(zip(texts, instructions, strict=True)):
        expected = library.encode(text, prompt=instruction, normalize_embeddings=True)
        assert np.abs(found[place] - expected).max() < 1e-5, text


def test_a_limit_of_tokens_cuts_texts(texts_only: Path) -> None:
    def embed(text: str, max_tokens: int | None) -> np.ndarray:
        encoder = SentenceTransformerEncoder(str(texts_only), device="cpu", max_tokens=max_tokens)
        ((_, vectors),) = encoder.stream([Content(text)], [None])
        return vectors[0]

    assert np.allclose(embed("a b c d e f", 5), embed("a b c", None), atol=1e-6)
    assert not np.allclose(embed("a b c d e f", None), embed("a b c", None), atol=1e-3)


def test_texts_and_pictures_of_a_clip_share_a_space_and_bad_pictures_are_told(tmp_path: Path) -> None:
    folder = build("clip", tmp_path)
    encoder = SentenceTransformerEncoder(str(folder), device="cpu")
    contents = [content for content in mixed() if not (content.text and content.image)] + [Content(image=b"no picture")]
    told: list[tuple[int, str]] = []
    found: dict[int, np.ndarray] = {}
    for places, vectors in encoder.stream(
        contents,
        [None] * len(contents),
        max_batch_rows=1,
        on_bad=lambda place, error: told.append((place, error.reason)),
    ):
        found |= dict(zip(places, vectors, strict=True))
    assert told == [(len(contents) - 1, "not_an_image")]
    assert sorted(found) == list(range(len(contents) - 1))
    assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in found.values())
    assert not np.allclose(found[4], found[5], atol=1e-3)
    with pytest.raises(ValueError, match="content 0: not_an_image"):
        list(encoder.stream([Content(image=b"no picture")], [None]))
    with pytest.raises(ValueError, match="content 1: too_many_pictures: 2 pictures in one content; sentence-tran"):
        list(encoder.stream([Content("a"), Content("a cat", images=[b"a", b"b"])], [None, None]))


def test_the_width_is_told_by_the_files_or_the_model(texts_only: Path, tmp_path: Path) -> None:
    assert sentence_transformer_width(str(texts_only)) == 32
    wider = SentenceTransformer(
        modules=[*SentenceTransformer(str(texts_only), device="cpu"), Dense(32, 48)], device="cpu"
    )
    wider.save(str(tmp_path / "wider"))
    assert sentence_transformer_width(str(tmp_path / "wider")) == 48
    settings = tmp_path / "wider" / "config_sentence_transformers.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"truncate_dim": 8}))
    assert sentence_transformer_width(str(tmp_path / "wider")) == 8
    assert SentenceTransformerEncoder(str(tmp_path / "wider"), device="cpu").dimension == 8
    both = SentenceTransformer(
        modules=[SentenceTransformer(str(texts_only), device="cpu")[0], Pooling(32, ["cls", "mean"])], device="cpu"
    )
    both.save(str(tmp_path / "both"))
    assert sentence_transformer_width(str(tmp_path / "both")) == 64


@pytest.mark.parametrize("path", ["no/such/folder", "./gone", "."])
def test_what_is_no_model_is_told_in_a_line(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no model at"):
        sentence_transformer_width(path)


def test_a_folder_that_the_library_cannot_load_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot load the model at"):
        sentence_transformer_width(str(tmp_path))


def test_rows_of_a_kind_that_the_model_does_not_take_are_told_and_the_others_embedded(texts_only: Path) -> None:
    encoder = SentenceTransformerEncoder(str(texts_only), device="cpu")
    contents = [Content("a cat"), Content(image=picture(0)), Content("x", picture(1)), Content("a dog")]
    bad: dict[int, str] = {}
    found = dict.fromkeys(range(4), 0)
    for places, vectors in encoder.stream(contents, [None] * 4, on_bad=lambda n, error: bad.update({n: error.reason})):
        found |= dict.fromkeys(places, len(vectors))
    assert bad == {1: "unsupported_modality", 2: "unsupported_modality"} and found == {0: 2, 1: 0, 2: 0, 3: 2}
    with pytest.raises(ValueError, match="content 1: unsupported_modality: the model takes no pictures"):
        list(encoder.stream(contents, [None] * 4))


def test_a_model_folder_of_train_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text("{}")
    for load in (sentence_transformer_width, SentenceTransformerEncoder):
        with pytest.raises(ValueError, match=r"model folder of `train`: .*`train export layout=sentence-transformers`"):
            load(str(tmp_path))
