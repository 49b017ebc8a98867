"""Pictures as bytes until they are where the model is.

The last thing an image processor does to a pixel is x * scale + shift, by channel. Left to the device, a prepared
picture weighs a quarter on its way there (of Llama-3.2-Vision 3.8 MB in place of 15), and the processor has less to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TRIAL = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)

Process = Callable[..., Mapping[str, Tensor]]
"""An image processor on one RGB array [H, W, 3], with options of its own."""


class BytePixels:
    """An image processor that leaves that last step, where a trial shows that it comes to the same.

    Args:
        process: what calls the processor.
        tile_mask: the name of the tensor [..., T] that tells the real ones of the tiles in `pixel_values`
            [..., T, 3, H, W], where those of padding are 0 to the model.
    """

    def __init__(self, image_processor: Any, process: Process, *, tile_mask: str | None = None) -> None:
        self._process, self._tile_mask = process, tile_mask
        scale = image_processor.rescale_factor if getattr(image_processor, "do_rescale", False) else 1.0
        mean, std = [0.0] * 3, [1.0] * 3
        if getattr(image_processor, "do_normalize", False):
            mean, std = image_processor.image_mean, image_processor.image_std
        self._scale = torch.tensor([scale / deviation for deviation in std])
        self._shift = torch.tensor([-middle / deviation for middle, deviation in zip(mean, std, strict=True)])
        self._leaves_step = self._comes_to_the_same()

    def prepare(self, pixels: np.ndarray, **options: Any) -> dict[str, Tensor]:
        """The processor's tensors of one picture, `pixel_values` as uint8 where `floats` can make the rest of it.

        Args:
            options: for `process`.
        """
        if not self._leaves_step:
            return dict(self._process(pixels, **options))
        prepared = dict(self._process(pixels, do_rescale=False, do_normalize=False, **options))
        return prepared | {"pixel_values": prepared["pixel_values"].to(torch.uint8)}

    def floats(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with `pixel_values` in float32 as the processor would have made them, on their device."""
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        # [patches, 3 * the rest] in the families that cut pictures into patches, else [..., 3, H, W].
        by_channel = pixels.unflatten(1, (3, -1)) if pixels.ndim == 2 else pixels
        shape = (3, 1) if pixels.ndim == 2 else (3, 1, 1)
        scale, shift = (part.to(pixels.device).view(shape) for part in (self._scale, self._shift))
        floats = torch.addcmul(shift, by_channel.float(), scale).view(pixels.shape)
        if self._tile_mask is not None:
            is_padding = inputs[self._tile_mask] == 0
            if is_padding.any():
                floats[is_padding] = 0.0
        return inputs | {"pixel_values": floats}

    def _comes_to_the_same(self) -> bool:
        whole = self._process(_TRIAL)["pixel_values"]
        left = self._process(_TRIAL, do_rescale=False, do_normalize=False)
        pixels = left["pixel_values"]
        if not torch.equal(pixels, pixels.to(torch.uint8).to(pixels.dtype)):
            return False
        made = self.floats({**left, "pixel_values": pixels.to(torch.uint8)})["pixel_values"]
        return made.shape == whole.shape and torch.allclose(made, whole.float(), rtol=0.0, atol=1e-5)
