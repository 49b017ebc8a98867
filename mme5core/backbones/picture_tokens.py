"""Families whose pictures are tokens of the row: what Qwen-VL, LLaVA and their like have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mme5core.backbones.byte_pixels import BytePixels
from mme5core.backbones.protocol import (
    Features,
    PictureInputs,
    PictureSize,
    base_model,
    last_real_state,
    pad_right,
)


class PictureTokens(ABC):
    """A picture's features take the places of its tokens in the embedded text."""

    image_prefix: str
    image_token: str
    default_style = "mme5"
    pooling = "last"
    knows_tower = True
    needs_sizes = True
    tower: tuple[str, ...]
    pixels: tuple[str, ...]
    """Names of the processor's tensors, by which the model's `get_image_features` takes them."""

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if self.image_token_id is None:
            raise ValueError(f"the tokenizer has no token {self.image_token!r}, which stands for a picture")

    @abstractmethod
    def num_picture_tokens(self, size: PictureSize) -> int:
        """How many tokens a picture of this size takes."""

    def token_ids(
        self, prompts: Sequence[str], sizes: Sequence[PictureSize | None], *, max_tokens: int
    ) -> list[list[int]]:
        rows: list[list[int]] = self.tokenizer(list(prompts), truncation=True, max_length=max_tokens)["input_ids"]
        return [
            row if size is None else self._expand(row, self.num_picture_tokens(size))
            for row, size in zip(rows, sizes, strict=True)
        ]

    def prepare_picture(self, picture: Image.Image) -> PictureInputs:
        return self._byte_pixels.prepare(np.asarray(self.usable(picture)))

    def float_pixels(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._byte_pixels.floats(inputs)

    @cached_property
    def _byte_pixels(self) -> BytePixels:
        return BytePixels(self.image_processor, self._process)

    def _process(self, pixels: np.ndarray, **options: Any) -> PictureInputs:
        # The layout is stated: left to guess, a processor takes a side of 1 or 3 pixels for the channels.
        made = self.image_processor([pixels], input_data_format="channels_last", return_tensors="pt", **options)
        return {name: made[name] for name in self.pixels}

    def usable(self, picture: Image.Image) -> Image.Image:
        """The picture, changed only where the family's processor cannot take it."""
        return picture

    def collate(self, token_ids: Sequence[list[int]], pictures: Sequence[PictureInputs] | None) -> dict[str, Tensor]:
        input_ids, attention_mask = pad_right(token_ids, _pad_id(self.tokenizer))
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return inputs if pictures is None else inputs | self.stack(pictures)

    def stack(self, pictures: Sequence[PictureInputs]) -> dict[str, Tensor]:
        """The pictures' tensors as one batch."""
        return {name: torch.cat([picture[name] for picture in pictures]) for name in pictures[0]}

    def features(self, model: nn.Module, pictures: Sequence[PictureInputs]) -> list[Features]:
        output = base_model(model).get_image_features(**self.stack(pictures), return_dict=True)
        return [(feature,) for feature in output.pooler_output]

    def pooled(self, model: nn.Module, inputs: dict[str, Tensor], features: Sequence[Features] | None = None) -> Tensor:
        inputs = inputs | self.extra_inputs(inputs)
        if features is None:
            state_BSD = model(**inputs, use_cache=False).last_hidden_state
        else:
            inputs = inputs | {"pixel_values": inputs["input_ids"].new_zeros(1, dtype=torch.float32)}
            with image_features(base_model(model), self.joined(features)):
                state_BSD = model(**inputs, use_cache=False).last_hidden_state
        return last_real_state(state_BSD, inputs["attention_mask"])

    def extra_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the family's model wants beside tokens, mask and pixels."""
        return {}

    def joined(self, features: Sequence[Features]) -> Any:
        """The features of several pictures, as `get_image_features` returns them."""
        return SimpleNamespace(pooler_output=tuple(feature for (feature,) in features))

    def _expand(self, row: list[int], num_tokens: int) -> list[int]:
        place = row.index(self.image_token_id)
        return row[:place] + [self.image_token_id] * num_tokens + row[place + 1 :]


@contextmanager
def image_features(model: nn.Module, output: Any) -> Iterator[None]:
    """Within it, the model's `get_image_features` returns `output` and its vision tower rests."""
    model.__dict__["get_image_features"] = lambda *_, **__: output
    try:
        yield
    finally:
        del model.__dict__["get_image_features"]


def _pad_id(tokenizer: Any) -> int:
    """The padding token; a masked position may hold any token, so a tokenizer without one gives its first."""
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0
