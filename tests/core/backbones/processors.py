"""transformers' own processor of each small checkpoint, to hold ours against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers as tf

_OPTIONS: dict[str, dict[str, Any]] = {
    "llava_next": {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    "llava_onevision": {
        "num_image_tokens": 16,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_2",
    },
}
_CLASSES: dict[str, Any] = {
    "mllama": tf.MllamaProcessor,
    "qwen2_vl": tf.Qwen2VLProcessor,
    "qwen2_5_vl": tf.Qwen2_5_VLProcessor,
    "qwen3_vl": tf.Qwen3VLProcessor,
    "llava_next": tf.LlavaNextProcessor,
    "llava_onevision": tf.LlavaOnevisionProcessor,
}


def processor_of(family: str, checkpoint: Path, backbone: Any) -> Any:
    """The library's processor, as it is stored or made of the backbone's tokenizer and image processor."""
    if family not in _CLASSES:
        return tf.AutoProcessor.from_pretrained(checkpoint, backend="pil")

    class WithoutVideo(_CLASSES[family]):  # type: ignore[misc]
        """Its processor of videos needs torchvision; without, the library cannot even check that there is none."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name != "video_processor":
                return super().check_argument_for_proper_class(argument_name, argument)
            return None

    return WithoutVideo(backbone.image_processor, backbone.tokenizer, **_OPTIONS.get(family, {}))
