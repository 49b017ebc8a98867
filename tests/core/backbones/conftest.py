"""One encoder of each family, loaded when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mme5core import Encoder


@pytest.fixture(scope="session")
def encoder_of(checkpoint: Callable[[str], Path]) -> Callable[[str], Encoder]:
    @cache
    def loaded(family: str) -> Encoder:
        return Encoder.load(checkpoint(family), device="cpu", dtype="float32")

    return loaded
