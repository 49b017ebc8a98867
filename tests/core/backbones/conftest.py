"""One encoder of each family, loaded when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from mme5core import Encoder
from mme5core.backbones.protocol import Features, PictureInputs


@pytest.fixture(scope="session")
def encoder_of(checkpoint: Callable[[str], Path]) -> Callable[[str], Encoder]:
    @cache
    def loaded(family: str) -> Encoder:
        return Encoder.load(checkpoint(family), device="cpu", dtype="float32")

    return loaded


@pytest.fixture
def tower_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Encoder], list[int]]:
    """How many pictures each run of an encoder's tower has, from the call on."""

    def count(encoder: Encoder) -> list[int]:
        counts: list[int] = []
        features = encoder.module.features

        def counted(pictures: Sequence[PictureInputs]) -> list[Features]:
            counts.append(len(pictures))
            return features(pictures)

        monkeypatch.setattr(encoder.module, "features", counted)
        return counts

    return count
