"""LLaVA-NeXT: the whole picture, then tiles of it on a grid near its aspect ratio."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

from mme5core.backbones.picture_tokens import PictureTokens
from mme5core.backbones.protocol import PictureInputs, PictureSize


class LlavaNext(PictureTokens):
    image_prefix = "<image>\n"
    image_token = "<image>"
    tower = ("vision_tower", "multi_modal_projector", "image_newline")
    pixels = ("pixel_values", "image_sizes")

    def num_picture_tokens(self, size: PictureSize, *, is_one_of_several: bool = False) -> int:
        # The model's own packing, run on tensors without data, so that its arithmetic is not repeated here.
        width, height = size
        vision, image_size = self.config.vision_config, torch.tensor([height, width])
        num_tiles = image_size_to_num_patches(image_size, self.config.image_grid_pinpoints, vision.image_size)
        length = (vision.image_size // vision.patch_size) ** 2
        features, newline = torch.empty(num_tiles, length, 1, device="meta"), torch.empty(1, device="meta")
        packed, _ = self.pack([features], [image_size], newline)
        return len(packed[0])

    def pack(self, features: list[Tensor], image_sizes: list[Tensor], newline: Tensor) -> Any:
        strategy = self.config.vision_feature_select_strategy
        return LlavaNextModel.pack_image_features(
            SimpleNamespace(config=self.config),  # type: ignore[arg-type]
            features,
            image_sizes,
            vision_feature_select_strategy=strategy,
            image_newline=newline,
        )

    def stack(self, pictures: Sequence[PictureInputs]) -> dict[str, Tensor]:
        if "pixel_values" in pictures[0]:
            # Each is [1, tiles, 3, H, W], padded to the largest number of tiles; the model derives the real ones from
            # `image_sizes`.
            most = max(picture["pixel_values"].shape[1] for picture in pictures)
            pictures = [picture | {"pixel_values": _with_tiles(picture["pixel_values"], most)} for picture in pictures]
        return super().stack(pictures)


def _with_tiles(pixels: Tensor, num_tiles: int) -> Tensor:
    return F.pad(pixels, (0, 0) * 3 + (0, num_tiles - pixels.shape[1]))
