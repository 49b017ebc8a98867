"""VLM families behind one protocol, chosen by the checkpoint's `model_type`."""

from __future__ import annotations

from typing import Any

from mme5core.backbones.mllama import Mllama
from mme5core.backbones.protocol import Backbone

BACKBONES: dict[str, type[Backbone]] = {"mllama": Mllama}


def backbone_for(model_type: str, tokenizer: Any, image_processor: Any) -> Backbone:
    """The backbone of a checkpoint.

    Raises:
        ValueError: for a family that has no file here.
    """
    if model_type not in BACKBONES:
        raise ValueError(f"unknown backbone {model_type!r}; known: {sorted(BACKBONES)}")
    return BACKBONES[model_type](tokenizer, image_processor)


__all__ = ["BACKBONES", "Backbone", "backbone_for"]
