"""One small checkpoint and one encoder of each family, made when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mme5core import Encoder
from tests.core.backbones.families import build


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    @cache
    def made(family: str) -> Path:
        return build(family, root / family)

    return made


@pytest.fixture(scope="session")
def encoder_of(checkpoint: Callable[[str], Path]) -> Callable[[str], Encoder]:
    @cache
    def loaded(family: str) -> Encoder:
        return Encoder.load(checkpoint(family), device="cpu", dtype="float32")

    return loaded
