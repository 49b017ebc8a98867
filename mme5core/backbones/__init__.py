"""Model families behind one protocol, chosen by the checkpoint's `model_type`."""

from __future__ import annotations

from typing import Any

from mme5core.backbones.any_vlm import AnyVlm
from mme5core.backbones.dual_encoder import DualEncoder
from mme5core.backbones.llava_next import LlavaNext
from mme5core.backbones.llava_onevision import LlavaOnevision
from mme5core.backbones.loading import load_image_processor, load_processor, load_tokenizer
from mme5core.backbones.mllama import Mllama
from mme5core.backbones.protocol import Backbone
from mme5core.backbones.qwen2_5_vl import Qwen25VL
from mme5core.backbones.qwen2_vl import Qwen2VL
from mme5core.backbones.qwen3_vl import Qwen3VL
from mme5core.model_folder import DUAL_ENCODERS

BACKBONES: dict[str, type[Any]] = {
    "mllama": Mllama,
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaOnevision,
} | dict.fromkeys(DUAL_ENCODERS, DualEncoder)


def load_backbone(base: str, config: Any, *, remote_code: bool = False) -> Backbone:
    """The backbone of a checkpoint: that of its family, else `AnyVlm`.

    Raises:
        ValueError: the checkpoint has no tokenizer or processor, or its model does not take both pictures and texts.
    """
    tokenizer = load_tokenizer(base, remote_code=remote_code)
    family = BACKBONES.get(config.model_type)
    if family is not None:
        image_processor = load_image_processor(base, remote_code=remote_code)
        backbone: Backbone = family(tokenizer, image_processor, config)
        return backbone
    if not hasattr(config, "vision_config"):
        raise ValueError(
            f"{base!r} is a {config.model_type!r}, which takes no pictures; known families: {sorted(BACKBONES)}, "
            "and any other image-text model of transformers"
        )
    processor = load_processor(base, remote_code=remote_code)
    return AnyVlm(tokenizer, processor.image_processor, config, processor)


__all__ = ["BACKBONES", "Backbone", "load_backbone"]
