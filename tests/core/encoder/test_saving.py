"""A saved model is found again with all that belongs to it, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mme5core import Content, Encoder
from mme5core.adapters import add_adapter
from mme5core.model_folder import model_width
from tests.core.contents import mixed


def test_an_adapter_travels_with_its_style_and_finds_its_base_also_after_a_move(base: Path, tmp_path: Path) -> None:
    world = tmp_path / "world"
    shutil.copytree(base, world / "base")
    encoder = Encoder.load(world / "base")
    encoder.max_tokens = 17
    encoder.module.model = add_adapter(
        encoder.module.model, rank=4, alpha=8, dropout=0.0, targets="language", train_embeddings=True
    )
    with torch.no_grad():
        for name, parameter in encoder.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    expected = encoder.embed(mixed())
    encoder.save(world / "model")
    assert np.abs(Encoder.load(world / "base").embed(mixed()) - expected).max() > 1e-3
    world.rename(tmp_path / "moved")
    loaded = Encoder.load(tmp_path / "moved" / "model")
    assert loaded.max_tokens == 17 and loaded.prompt_style == "mme5"
    assert np.abs(loaded.embed(mixed()) - expected).max() < 1e-5
    encoder.save(tmp_path / "whole", include_base=True)
    assert np.abs(Encoder.load(tmp_path / "whole").embed(mixed()) - expected).max() < 1e-5


def test_a_model_on_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    encoder = Encoder.load(tmp_path / "base")
    encoder.module.model = add_adapter(
        encoder.module.model, rank=2, alpha=4, dropout=0.0, targets=["q_proj"], train_embeddings=False
    )
    encoder.save(tmp_path / "model")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"note": "another"}))
    with pytest.raises(ValueError, match="is not the one that"):
        Encoder.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ValueError, match="no longer there"):
        Encoder.load(tmp_path / "model")


def test_a_loaded_encoder_can_be_saved_again(base: Path, tmp_path: Path) -> None:
    contents = [Content(text="un gato"), Content(text="a dog")]
    Encoder.load(base).save(tmp_path / "reference")
    assert np.array_equal(Encoder.load(tmp_path / "reference").embed(contents), Encoder.load(base).embed(contents))
    adapted = Encoder.load(base)
    adapted.module.model = add_adapter(
        adapted.module.model, rank=2, alpha=4, dropout=0.0, targets="all", train_embeddings=False
    )
    adapted.save(tmp_path / "model")
    loaded = Encoder.load(tmp_path / "model")
    loaded.save(tmp_path / "again")
    again = Encoder.load(tmp_path / "again")
    assert np.array_equal(again.embed(contents), loaded.embed(contents))
    assert model_width(tmp_path / "again") == again.dimension
