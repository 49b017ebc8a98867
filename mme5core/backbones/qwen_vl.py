"""Common part of the Qwen-VL families: pictures of any size, with a number of tokens that grows with it."""

from __future__ import annotations

from typing import cast

import torch
from PIL import Image
from torch import Tensor, nn

from mme5core.backbones.picture_tokens import PictureTokens
from mme5core.backbones.protocol import IN_A_ROW, PictureSize, base_model

MAX_ASPECT_RATIO = 200
"""The family's image processors refuse a picture with a higher ratio of its sides."""


class QwenVL(PictureTokens):
    image_prefix = "<|vision_start|><|image_pad|><|vision_end|>"
    image_token = "<|image_pad|>"
    tower = ("visual",)
    pixels = ("pixel_values", "image_grid_thw")

    def num_picture_tokens(self, size: PictureSize, *, is_one_of_several: bool = False) -> int:
        width, height = _within_ratio(size)
        patches = self.image_processor.get_number_of_image_patches(height, width, {})
        return int(patches) // self.image_processor.merge_size**2

    def usable(self, picture: Image.Image) -> Image.Image:
        size = _within_ratio(picture.size)
        return picture if size == picture.size else picture.resize(size)

    def positions(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor | None:
        # What an earlier pass has left there would be added to the positions of rows after a cache.
        base_model(model).rope_deltas = None
        if "image_grid_thw" not in inputs:
            return None
        if self.positions_of_tokens == IN_A_ROW:
            return _in_a_row(inputs["input_ids"])
        positions, _ = base_model(model).get_rope_index(**(inputs | self.extra_inputs(inputs)))
        return cast(Tensor, positions)

    def extra_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if "image_grid_thw" not in inputs:
            return {}
        if self.positions_of_tokens == IN_A_ROW:
            return {} if "position_ids" in inputs else {"position_ids": _in_a_row(inputs["input_ids"])}
        # Marks the picture tokens, which get positions in two dimensions.
        return {"mm_token_type_ids": (inputs["input_ids"] == self.image_token_id).int()}


def _in_a_row(ids_BS: Tensor) -> Tensor:
    """[3, B, S]: the same place in the row for time, height and width. The padding is on the right."""
    return torch.arange(ids_BS.shape[1], device=ids_BS.device).expand(3, *ids_BS.shape)


def _within_ratio(size: PictureSize) -> PictureSize:
    """The size, its short side enlarged if the processor would refuse the aspect ratio."""
    width, height = size
    shortest = -(-max(size) // MAX_ASPECT_RATIO)
    return max(width, shortest), max(height, shortest)
