"""Families for parameters of tests: three at every run, one of each kind, and the others behind the marker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

ALWAYS = ("mllama", "qwen2_vl", "llava_next")


def each_family(families: Iterable[str]) -> list[Any]:
    return [pytest.param(f, marks=() if f in ALWAYS else pytest.mark.slow) for f in sorted(families)]
