"""A small mllama with its own tokenizer, cross-attention gates open, weights random."""

from __future__ import annotations

from pathlib import Path

import pytest

from mme5core.demo.base_model import build_base

TEXTS = [
    "a cat",
    "a dog on a red sofa",
    "un gatto",
    "собака",
    "猫",
    "Represent the given image.",
    "Find the picture:",
] * 9


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    build_base(folder, TEXTS)
    return folder
