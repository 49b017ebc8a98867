"""Adapters on adapters: a second stage keeps the first, and a base on the hub stays the one that was trained on."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from mme5core import Encoder
from mme5core.adapters import add_adapter
from mme5core.hub import pinned
from mme5core.model_folder import adapters_of, base_reference, check_model_files, find_base, model_identity, model_width
from tests.core.contents import mixed

COMMITS = ("a" * 40, "b" * 40)


def add_trained(encoder: Encoder, seed: int) -> None:
    """Put an adapter on it, with weights as after some training."""
    encoder.module.model = add_adapter(
        encoder.module.model, rank=2, alpha=4, dropout=0.0, targets=["q_proj", "v_proj"], train_embeddings=False
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    encoder.module.eval()


def stage(model: Path | str, folder: Path, seed: int) -> np.ndarray:
    """Train a stage on a model; the vectors that it had when it was saved."""
    encoder = Encoder.load(model, device="cpu")
    add_trained(encoder, seed)
    vectors = encoder.embed(mixed())
    encoder.save(folder)
    return vectors


def test_every_stage_is_there_when_the_last_is_loaded(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "here" / "base")
    folders = [tmp_path / "here" / name for name in ("base", "one", "two", "three")]
    expected = [stage(beneath, folder, seed) for seed, (beneath, folder) in enumerate(itertools.pairwise(folders))]
    (tmp_path / "here").rename(tmp_path / "there")
    moved = [tmp_path / "there" / folder.name for folder in folders]
    for folder, vectors in zip(moved[1:], expected, strict=True):
        assert np.abs(Encoder.load(folder).embed(mixed()) - vectors).max() < 1e-5
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(expected)) > 1e-3
    assert [folder.resolve() for folder in adapters_of(moved[3])] == moved[1:]
    assert Path(find_base(moved[3])).resolve() == moved[0] and model_width(moved[3]) == expected[0].shape[1]
    again = Encoder.load(moved[3])
    again.save(tmp_path / "again")
    assert np.abs(Encoder.load(tmp_path / "again").embed(mixed()) - expected[2]).max() < 1e-5
    again.save(tmp_path / "whole", include_base=True)
    assert np.abs(Encoder.load(tmp_path / "whole").embed(mixed()) - expected[2]).max() < 1e-5


def test_an_adapter_given_beside_a_trained_model_is_put_on_top_of_it(base: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    stage(base, one, 0)
    expected = stage(one, two, 1)
    assert np.abs(Encoder.load(one, adapter=two).embed(mixed()) - expected).max() < 1e-5
    with pytest.raises(ValueError, match="was trained on another base than"):
        Encoder.load(base, adapter=two)
    stage(base, tmp_path / "other", 2)
    with pytest.raises(ValueError, match="was trained on another base than"):
        Encoder.load(one, adapter=tmp_path / "other")


def test_a_stage_that_has_changed_or_lost_its_weights_is_refused(base: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    stage(base, one, 0)
    stage(one, two, 1)
    shutil.copytree(one, tmp_path / "kept")
    stage(base, one, 5)
    with pytest.raises(ValueError, match="is not the one that"):
        Encoder.load(two)
    shutil.rmtree(one)
    (tmp_path / "kept").rename(one)
    Encoder.load(two)
    (one / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is not the one that|has no weights"):
        check_model_files(two)


def test_a_foreign_adapter_takes_the_style_of_the_model_beneath_it(base: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(base, prompt_style="plain")
    add_trained(encoder, 0)
    encoder.save(tmp_path / "one")
    stage(tmp_path / "one", tmp_path / "two", 1)
    (tmp_path / "two" / "encoder.json").unlink()
    loaded = Encoder.load(tmp_path / "one", adapter=tmp_path / "two")
    assert loaded.prompt_style == "plain"


def test_an_adapter_that_names_another_base_than_it_was_put_on_is_no_reference(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.copytree(base, tmp_path / "base")
    stage(tmp_path / "base", tmp_path / "one", 0)
    (tmp_path / "one" / "encoder.json").unlink()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    (tmp_path / "one" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "owner/other"})
    )
    encoder = Encoder.load(tmp_path / "base", adapter=tmp_path / "one")
    add_trained(encoder, 1)
    with pytest.raises(ValueError, match="include_base=True"):
        encoder.save(tmp_path / "two")
    assert not (tmp_path / "two").exists()


@pytest.fixture
def hub(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local copy of acme/base: two commits of different weights; returns the file that names the newest."""
    root = tmp_path / "hub" / "models--acme--base"
    for seed, commit in enumerate(COMMITS):
        encoder = Encoder.load(base, device="cpu")
        with torch.no_grad():
            for parameter in encoder.module.parameters():
                parameter.mul_(1 + 0.3 * seed)
        encoder.save(root / "snapshots" / commit, include_base=True)
        (root / "snapshots" / commit / "encoder.json").unlink()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return root / "refs" / "main"


def test_a_base_on_the_hub_is_the_commit_that_was_trained_on(hub: Path, tmp_path: Path) -> None:
    expected = stage("acme/base", tmp_path / "model", 0)
    identity = model_identity(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "encoder.json").read_text())["base_commit"] == COMMITS[0]
    assert model_identity("acme/base") == pinned("acme/base") == f"acme/base@{COMMITS[0]}"
    hub.write_text(COMMITS[1])
    assert model_identity("acme/base") == f"acme/base@{COMMITS[1]}"
    assert model_identity(f"acme/base@{COMMITS[0]}") == f"acme/base@{COMMITS[0]}"
    assert model_identity(tmp_path / "model") == identity
    assert np.abs(Encoder.load(tmp_path / "model").embed(mixed()) - expected).max() < 1e-5
    moved, named = Encoder.load("acme/base"), Encoder.load(f"acme/base@{COMMITS[0]}")
    assert np.abs(moved.embed(mixed()) - named.embed(mixed())).max() > 1e-3
    assert (moved.base, named.base) == tuple(f"acme/base@{commit}" for commit in COMMITS[::-1])
    with pytest.raises(ValueError, match=f"name the model acme/base@{COMMITS[0]}"):
        Encoder.load("acme/base", adapter=tmp_path / "model")
    assert Encoder.load(f"acme/base@{COMMITS[0]}", adapter=tmp_path / "model").base == f"acme/base@{COMMITS[0]}"


def test_an_adapter_that_names_no_commit_has_that_of_its_base_in_its_identity(hub: Path, tmp_path: Path) -> None:
    stage("acme/base", tmp_path / "model", 0)
    settings = json.loads((tmp_path / "model" / "encoder.json").read_text())
    del settings["base_commit"]  # as earlier versions wrote it
    (tmp_path / "model" / "encoder.json").write_text(json.dumps(settings))
    before = model_identity(tmp_path / "model")
    assert before.endswith(f"@{COMMITS[0]}")
    hub.write_text(COMMITS[1])
    assert model_identity(tmp_path / "model") == before.replace(*COMMITS)
    assert base_reference(f"acme/base@{COMMITS[0]}", tmp_path) == {"base": "acme/base", "base_commit": COMMITS[0]}
