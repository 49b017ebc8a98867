"""CLIP, SigLIP and other models with a text tower and a picture tower, for embedding, mining and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mme5core.backbones.byte_pixels import BytePixels
from mme5core.backbones.protocol import (
    OWN_POSITIONS,
    Features,
    PictureInputs,
    PictureSize,
    base_model,
    pad_right,
    truncated_ids,
)

_PADS_TO_THE_END = ("siglip", "siglip2")


class DualEncoder:
    """Two towers with a common vector space; a text with a picture is the sum of their unit vectors (UniIR)."""

    image_prefix = ""
    max_pictures: int | None = 1
    picture_side: int | None = None
    positions_of_tokens: str = OWN_POSITIONS
    mixes_picture_counts = True
    reads_several_coarsely = False
    default_style = "plain"
    sees_late_pictures = False
    pooling = "projection"
    knows_tower = True
    needs_sizes = False
    tower: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.family = str(config.model_type)
        most = getattr(config.text_config, "max_position_embeddings", 512)
        self.max_text_tokens = min(tokenizer.model_max_length, most)
        # SigLIP was trained on texts padded to the maximum length without a mask, and pools the last position.
        self._pads_to_the_end = config.model_type in _PADS_TO_THE_END
        self._byte_pixels = BytePixels(image_processor, self._process)
        self._pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def token_ids(
        self, prompts: Sequence[str], sizes: Sequence[Sequence[PictureSize]], *, max_tokens: int
    ) -> list[list[int]]:
        longest = min(max_tokens, self.max_text_tokens)
        ids = truncated_ids(self.tokenizer, prompts, longest)
        # No tokens at all mark a picture without text; the tokenizer would add BOS and EOS to an empty text.
        return [[] if not prompt else row for prompt, row in zip(prompts, ids, strict=True)]

    def expanded(self, row: list[int], sizes: Sequence[PictureSize]) -> list[int]:
        return row  # a tower of its own reads the pictures

    def prepare_picture(self, picture: Image.Image, *, is_one_of_several: bool = False) -> PictureInputs:
        return self._byte_pixels.prepare(np.asarray(picture))

    def float_pixels(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._byte_pixels.floats(inputs)

    def _process(self, pixels: np.ndarray, **options: Any) -> PictureInputs:
        inputs = self.image_processor([pixels], input_data_format="channels_last", return_tensors="pt", **options)
        return {"pixel_values": inputs["pixel_values"]}

    def collate(
        self, token_ids: Sequence[list[int]], pictures: Sequence[Sequence[PictureInputs]] | None
    ) -> dict[str, Tensor]:
        inputs = {}
        if any(token_ids):
            filled = [ids or [self._pad_id] for ids in token_ids]
            if self._pads_to_the_end:
                filled = [ids + [self._pad_id] * (self.max_text_tokens - len(ids)) for ids in filled]
            inputs["input_ids"], inputs["attention_mask"] = pad_right(filled, self._pad_id)
            inputs["has_text"] = torch.tensor([bool(ids) for ids in token_ids])
        if pictures is not None and "pixel_values" in pictures[0][0]:
            inputs["pixel_values"] = torch.cat([picture["pixel_values"] for (picture,) in pictures])
        return inputs

    def positions(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor | None:
        return None

    def features(self, model: nn.Module, pictures: Sequence[PictureInputs]) -> list[Features]:
        pixels = torch.cat([picture["pixel_values"] for picture in pictures])
        return [(vector_D,) for vector_D in _vectors(base_model(model).get_image_features(pixel_values=pixels))]

    def pooled(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        features: Sequence[Sequence[Features]] | None = None,
        cache: Any = None,
    ) -> Tensor:
        towers = base_model(model)
        parts = []
        if "input_ids" in inputs:
            names = ("input_ids",) if self._pads_to_the_end else ("input_ids", "attention_mask")
            text_BD = _vectors(towers.get_text_features(**{name: inputs[name] for name in names}))
            parts.append(F.normalize(text_BD, dim=-1) * inputs["has_text"][:, None])
        if features is not None:
            parts.append(F.normalize(torch.stack([feature for ((feature,),) in features]), dim=-1))
        elif "pixel_values" in inputs:
            image_BD = _vectors(towers.get_image_features(pixel_values=inputs["pixel_values"]))
            parts.append(F.normalize(image_BD, dim=-1))
        return sum(parts[1:], parts[0])


def _vectors(output: Any) -> Tensor:
    """[B, D] from a tower's output, which is the tensor itself in models with remote code."""
    vectors: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return vectors
