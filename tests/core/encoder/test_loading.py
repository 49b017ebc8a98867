"""What a folder must hold to be loaded, and what of it we decide ourselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mme5core import Content, Encoder
from mme5core.adapters import add_adapter


def test_what_cannot_be_a_model_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder, and not a hub id"):
        Encoder.load(tmp_path / "nothing")
    for pattern, part in (
        ("tokenizer*", "no tokenizer"),
        ("p*_config.json", "no image processor"),
        ("*.safetensors", "no weights"),
    ):
        folder = tmp_path / part
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns(pattern))
        with pytest.raises(ValueError, match=part):
            Encoder.load(folder)
    with pytest.raises(ValueError, match="unknown dtype 'float99'"):
        Encoder.load(base, dtype="float99")
    with pytest.raises(ValueError, match="unknown prompt style"):
        Encoder.load(base, prompt_style="nope")
    with pytest.raises(ValueError, match="match no linear layer"):
        add_adapter(
            Encoder.load(base).module.model, rank=2, alpha=4, dropout=0, targets=["nope"], train_embeddings=False
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_is_cut_on_the_right_whatever_the_checkpoint_says(base: Path, tmp_path: Path, side: str) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"truncation_side": side}))
    encoder, content = Encoder.load(folder), Content("a cat " * 20 + "a dog")
    (uncut,) = encoder.token_ids([content], ["Find:"])
    encoder.max_tokens = 9
    assert encoder.token_ids([content], ["Find:"]) == [uncut[:9]] and len(uncut) > 20
