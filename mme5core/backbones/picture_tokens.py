"""Families whose pictures become tokens of the prompt, such as Qwen-VL and LLaVA."""

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
    OWN_POSITIONS,
    Features,
    PictureInputs,
    PictureSize,
    base_model,
    last_real_state,
    pad_right,
    tokenize,
)


class PictureTokens(ABC):
    """A picture's features replace the embeddings of its tokens."""

    image_prefix: str
    image_token: str
    max_pictures: int | None = None
    picture_side: int | None = None
    positions_of_tokens: str = OWN_POSITIONS
    mixes_picture_counts = True
    reads_several_coarsely = False
    default_style = "mme5"
    pooling = "last"
    knows_tower = True
    needs_sizes = True
    sees_late_pictures = True
    max_text_tokens: int | None = None
    tower: tuple[str, ...]
    pixels: tuple[str, ...]
    """Names of the processor's tensors, which are the arguments of the model's `get_image_features`."""

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config
        self.family = str(config.model_type)
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        if self.image_token_id is None:
            raise ValueError(f"the tokenizer has no token {self.image_token!r}, which marks a picture")

    @abstractmethod
    def num_picture_tokens(self, size: PictureSize, *, is_one_of_several: bool = False) -> int:
        """Number of tokens of a picture of this size."""

    def picture_ids(self, size: PictureSize, *, is_one_of_several: bool = False) -> list[int]:
        """The tokens that replace a picture's single token in the prompt."""
        return [self.image_token_id] * self.num_picture_tokens(size, is_one_of_several=is_one_of_several)

    def token_ids(
        self, prompts: Sequence[str], sizes: Sequence[Sequence[PictureSize]], *, max_tokens: int
    ) -> list[list[int]]:
        counts = [len(of_row) for of_row in sizes]
        rows = tokenize(self.tokenizer, prompts, counts, image_prefix=self.image_prefix, max_tokens=max_tokens)
        return [self.expanded(row, of_row) for row, of_row in zip(rows, sizes, strict=True)]

    def prepare_picture(self, picture: Image.Image, *, is_one_of_several: bool = False) -> PictureInputs:
        return self._byte_pixels.prepare(np.asarray(self.usable(picture)))

    def float_pixels(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._byte_pixels.floats(inputs)

    @cached_property
    def _byte_pixels(self) -> BytePixels:
        return BytePixels(self.image_processor, self._process)

    def _process(self, pixels: np.ndarray, **options: Any) -> PictureInputs:
        # Without `input_data_format`, a processor mistakes a side of 1 or 3 pixels for the channels.
        inputs = self.image_processor([pixels], input_data_format="channels_last", return_tensors="pt", **options)
        return {name: inputs[name] for name in self.pixels}

    def usable(self, picture: Image.Image) -> Image.Image:
        """The picture, changed only where the family's processor cannot take it."""
        return picture

    def collate(
        self, token_ids: Sequence[list[int]], pictures: Sequence[Sequence[PictureInputs]] | None
    ) -> dict[str, Tensor]:
        input_ids, attention_mask = pad_right(token_ids, _pad_id(self.tokenizer))
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if pictures is None:
            return inputs
        # The model takes the pictures of all rows as one list, and finds each picture's row by its tokens.
        return inputs | self.stack([picture for of_row in pictures for picture in of_row])

    def stack(self, pictures: Sequence[PictureInputs]) -> dict[str, Tensor]:
        """The pictures' tensors as one batch."""
        return {name: torch.cat([picture[name] for picture in pictures]) for name in pictures[0]}

    def positions(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor | None:
        return None

    def features(self, model: nn.Module, pictures: Sequence[PictureInputs]) -> list[Features]:
        output = base_model(model).get_image_features(**self.stack(pictures), return_dict=True)
        return [(feature,) for feature in output.pooler_output]

    def pooled(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        features: Sequence[Sequence[Features]] | None = None,
        cache: Any = None,
    ) -> Tensor:
        inputs = inputs | self.extra_inputs(inputs) | {"use_cache": cache is not None, "past_key_values": cache}
        if features is None:
            state_BSD = model(**inputs).last_hidden_state
        else:
            inputs = inputs | {"pixel_values": inputs["input_ids"].new_zeros(1, dtype=torch.float32)}
            with image_features(base_model(model), self.joined([feature for of_row in features for feature in of_row])):
                state_BSD = model(**inputs).last_hidden_state
        return last_real_state(state_BSD, inputs["attention_mask"][:, -state_BSD.shape[1] :])

    def extra_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Further inputs that the family's model needs, beside tokens, mask and pixels."""
        return {}

    def joined(self, features: Sequence[Features]) -> Any:
        """The features of several pictures, as `get_image_features` returns them."""
        return SimpleNamespace(pooler_output=tuple(feature for (feature,) in features))

    def expanded(self, row: list[int], sizes: Sequence[PictureSize]) -> list[int]:
        expanded: list[int] = []
        start = 0
        for size in sizes:
            place = row.index(self.image_token_id, start)
            expanded += row[start:place] + self.picture_ids(size, is_one_of_several=len(sizes) > 1)
            start = place + 1
        return expanded + row[start:]


@contextmanager
def image_features(model: nn.Module, output: Any) -> Iterator[None]:
    """Within it, the model's `get_image_features` returns `output` without running the vision tower."""
    model.__dict__["get_image_features"] = lambda *_, **__: output
    try:
        yield
    finally:
        del model.__dict__["get_image_features"]


def _pad_id(tokenizer: Any) -> int:
    """The padding token, or token 0 if the tokenizer has none: a masked position may hold any token."""
    return int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else 0
