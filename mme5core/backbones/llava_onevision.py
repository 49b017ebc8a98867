"""LLaVA-OneVision: LLaVA-NeXT with up to 9 tiles and Qwen2's tokens; several pictures are not cut into tiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from mme5core.backbones.llava_next import LlavaNext
from mme5core.backbones.protocol import Features, PictureInputs, PictureSize


class LlavaOnevision(LlavaNext):
    """A prepared picture also holds `is_coarse` [1]: 1 for one of several, which the tower reads as one tile."""

    reads_several_coarsely = True

    def num_picture_tokens(self, size: PictureSize, *, is_one_of_several: bool = False) -> int:
        if not is_one_of_several:
            return super().num_picture_tokens(size)
        vision = self.config.vision_config
        length = (vision.image_size // vision.patch_size) ** 2
        packed, _ = self.pack([torch.empty(1, length, 1, device="meta")], [], torch.empty(1, device="meta"))
        return len(packed[0])

    def prepare_picture(self, picture: Image.Image, *, is_one_of_several: bool = False) -> PictureInputs:
        options = {"is_one_of_several": True} if is_one_of_several else {}
        prepared = self._byte_pixels.prepare(np.asarray(self.usable(picture)), **options)
        return prepared | {"is_coarse": torch.tensor([int(is_one_of_several)])}

    def _process(self, pixels: np.ndarray, *, is_one_of_several: bool = False, **options: Any) -> PictureInputs:
        if not is_one_of_several:
            return super()._process(pixels, **options)
        # With a second picture, of one pixel, the processor treats the first as one of several.
        inputs = self.image_processor(
            [[pixels, pixels[:1, :1]]], input_data_format="channels_last", return_tensors="pt", **options
        )
        return {name: inputs[name][:1] for name in self.pixels}

    def stack(self, pictures: Sequence[PictureInputs]) -> dict[str, Tensor]:
        stacked = super().stack(pictures)
        # The model needs the number of pictures in each row, to know which are alone in theirs. For consecutive coarse
        # ones only their total matters; for a single one, whose row is split over passes, 2 is passed.
        counts: list[int] = []
        for is_coarse, run in groupby(stacked.pop("is_coarse").tolist()):
            length = len(list(run))
            counts += [max(2, length)] if is_coarse else [1] * length
        return stacked | {"batch_num_images": torch.tensor(counts, device=stacked["image_sizes"].device)}

    def features(self, model: nn.Module, pictures: Sequence[PictureInputs]) -> list[Features]:
        # Coarse ones go last, where the count of 2 for a single one cannot cover another picture.
        order = sorted(range(len(pictures)), key=lambda place: int(pictures[place]["is_coarse"]))
        by_place = dict(zip(order, super().features(model, [pictures[place] for place in order]), strict=True))
        return [by_place[place] for place in range(len(pictures))]

    def pack(self, features: list[Tensor], image_sizes: list[Tensor], newline: Tensor) -> Any:
        return LlavaOnevisionModel.pack_image_features(
            SimpleNamespace(config=self.config),  # type: ignore[arg-type]
            features,
            image_sizes,
            image_newline=newline,
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
