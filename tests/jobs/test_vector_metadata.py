"""What made vectors is named in their files, for a plain model as by earlier versions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mme5core.encoder import Encoder
from mme5core.errors import InputError
from mme5core.model_folder import ENCODER_FILE
from mme5core.vectors import VectorFormat
from rayjobs.embed_corpus.config import EmbedCorpusConfig
from rayjobs.embed_corpus.inputs import checked_format
from rayjobs.embed_corpus.job import _file_metadata
from tests.core.backbones.families import build


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen2_vl", tmp_path_factory.mktemp("model") / "base")


def metadata(model: Path, **settings: Any) -> dict[str, str]:
    run = SimpleNamespace(identities={"model": "of the model"}, fingerprint="f")
    config = EmbedCorpusConfig(input=["x"], model=str(model), **settings)
    return _file_metadata(SimpleNamespace(run=run), config, VectorFormat(8, 8, "float32", ()), None)  # type: ignore[arg-type]


def test_a_model_that_reads_pictures_its_own_way_has_the_identity_that_it_had(model: Path) -> None:
    made_by = {
        "model": "of the model", "adapter": "", "prompt_style": "mme5", "pooling": "last", "dtype": "auto",
        "max_tokens": "", "dim": "8",
    }  # fmt: skip
    expected = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
    assert metadata(model)["mme5.model_identity"] == expected
    assert metadata(model, positions="own")["mme5.model_identity"] == expected


def test_what_is_asked_for_and_what_is_stored_have_one_identity_and_others_another(model: Path, tmp_path: Path) -> None:
    Encoder.load(model, device="cpu", picture_side=56).save(tmp_path / "stored")
    identities = [
        metadata(folder, **settings)["mme5.model_identity"]
        for folder, settings in (
            (model, {"picture_side": 56}),
            (tmp_path / "stored", {}),
            (model, {"picture_side": 64}),
            (model, {"positions": "in_a_row"}),
            (model, {}),
        )
    ]
    assert identities[0] == identities[1] and len(set(identities)) == 4


def test_a_reranker_is_refused_before_the_corpus_is_read(model: Path, tmp_path: Path) -> None:
    Encoder.load(model, device="cpu").save(tmp_path / "reranker")
    file = tmp_path / "reranker" / ENCODER_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kind": "reranker"}))
    config = EmbedCorpusConfig(input=["x"], model=str(tmp_path / "reranker"))
    with pytest.raises(InputError, match="is a reranker, which embeds nothing"):
        checked_format(config)
