"""Small models: an mllama with its own tokenizer, gates open, weights random; one of each family when asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mme5core.demo.base_model import build_base
from tests.core.backbones.families import build

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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    @cache
    def made(family: str) -> Path:
        return build(family, root / family)

    return made
