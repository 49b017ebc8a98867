"""Imports torchvision where it is installed, also beside a torch for which its C operators were not built.

transformers takes other image processors as soon as it is there; they need none of these operators. Processes that
tests start import this before transformers.
"""

from __future__ import annotations

import importlib.util
import sys


def _import_torchvision() -> None:
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        import torchvision  # noqa: F401


_import_torchvision()
