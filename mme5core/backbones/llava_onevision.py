"""LLaVA-OneVision: LLaVA-NeXT's tiles, up to nine of them, in Qwen2's tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from mme5core.backbones.llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    def pack(self, features: list[Tensor], image_sizes: list[Tensor], newline: Tensor) -> Any:
        return LlavaOnevisionModel.pack_image_features(
            SimpleNamespace(config=self.config),  # type: ignore[arg-type]
            features,
            image_sizes,
            image_newline=newline,
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
