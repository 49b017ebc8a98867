"""Qwen3-VL: features from several layers of the tower are added in the language model's first layers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn

from mme5core.backbones.protocol import Features, PictureInputs, base_model
from mme5core.backbones.qwen_vl import QwenVL


class Qwen3VL(QwenVL):
    def features(self, model: nn.Module, pictures: Sequence[PictureInputs]) -> list[Features]:
        output = base_model(model).get_image_features(**self.stack(pictures), return_dict=True)
        return list(zip(output.pooler_output, *output.deepstack_features, strict=True))

    def joined(self, features: Sequence[Features]) -> Any:
        pooled, *depths = zip(*features, strict=True)
        return SimpleNamespace(pooler_output=pooled, deepstack_features=depths)
