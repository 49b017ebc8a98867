"""Any other image-text model of transformers, through its own processor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mme5core.backbones.picture_tokens import PictureTokens
from mme5core.backbones.protocol import PictureInputs, PictureSize

# Families without a backbone of their own whose inputs for several pictures were checked against their processor.
# Other families take one picture.
_TAKE_SEVERAL = frozenset(("idefics3", "llava"))
_TEXT_INPUTS = frozenset(("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels"))


class AnyVlm(PictureTokens):
    """A family without a backbone of its own: its processor decides a picture's tokens and tensors.

    The form of its vision tower's output is unknown, so that the tower runs again for every row.
    """

    knows_tower = False
    tower: tuple[str, ...] = ()
    pixels: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any, processor: Any) -> None:
        self.image_token = str(getattr(processor, "image_token", None) or "<image>")
        self.image_prefix = f"{self.image_token}\n"
        self.processor = processor
        self._type_inputs = [
            name
            for name in ("token_type_ids", "mm_token_type_ids")
            if name in getattr(processor, "model_input_names", ())
        ]
        super().__init__(tokenizer, image_processor, config)
        self.max_pictures = None if self.family in _TAKE_SEVERAL else 1
        self._picture_ids = lru_cache(maxsize=4096)(self._processor_picture_ids)

    def num_picture_tokens(self, size: PictureSize, *, is_one_of_several: bool = False) -> int:
        return len(self._picture_ids(size))

    def picture_ids(self, size: PictureSize, *, is_one_of_several: bool = False) -> list[int]:
        return self._picture_ids(size)

    def prepare_picture(self, picture: Image.Image, *, is_one_of_several: bool = False) -> PictureInputs:
        prepared = self.processor(text=[self.image_token], images=[[picture]], return_tensors="pt")
        return {name: tensor for name, tensor in prepared.items() if name not in _TEXT_INPUTS}

    def float_pixels(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs

    def stack(self, pictures: Sequence[PictureInputs]) -> dict[str, Tensor]:
        return {name: _padded([picture[name] for picture in pictures]) for name in pictures[0]}

    def extra_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: (inputs["input_ids"] == self.image_token_id).long() for name in self._type_inputs}

    def _processor_picture_ids(self, size: PictureSize) -> list[int]:
        """The tokens that the processor makes of a picture of this size, without those that surround every text."""
        blank = Image.new("RGB", size)
        ids: list[int] = self.processor(text=[self.image_token], images=[[blank]])["input_ids"][0]
        around: list[int] = self.tokenizer("")["input_ids"]
        start = 0
        while start < len(around) and ids[start] == around[start]:
            start += 1
        after = around[start:]
        if after and ids[-len(after) :] == after:
            return ids[start : -len(after)]
        return ids[start:]


def _padded(tensors: list[Tensor]) -> Tensor:
    """The tensors concatenated; smaller ones are padded with zeros at the end of each axis."""
    shape = [max(tensor.shape[axis] for tensor in tensors) for axis in range(1, tensors[0].ndim)]
    padded = []
    for tensor in tensors:
        missing = [wanted - had for wanted, had in zip(shape, tensor.shape[1:], strict=True)]
        padded.append(F.pad(tensor, [side for wide in reversed(missing) for side in (0, wide)]))
    return torch.cat(padded)
