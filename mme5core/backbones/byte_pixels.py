"""Pictures as bytes until they are on the model's device.

The last step of an image processor is x * scale + shift for each channel. Computed on the device, it leaves a prepared
picture a quarter of its size until then (3.8 MB instead of 15 MB for Llama-3.2-Vision), and saves time on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TRIAL = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)

Process = Callable[..., Mapping[str, Tensor]]
"""Calls an image processor on one RGB array [H, W, 3], with options of that processor."""


class BytePixels:
    """An image processor without that last step, if a trial shows that the result is the same.

    Args:
        process: calls the processor.
        tile_mask: name of the tensor [..., T] that is 0 for padding tiles among `pixel_values` [..., T, 3, H, W]. Their
            pixels are set to 0 after the last step, as the processor does.
    """

    def __init__(self, image_processor: Any, process: Process, *, tile_mask: str | None = None) -> None:
        self._process, self._tile_mask = process, tile_mask
        scale = image_processor.rescale_factor if getattr(image_processor, "do_rescale", False) else 1.0
        mean, std = [0.0] * 3, [1.0] * 3
        if getattr(image_processor, "do_normalize", False):
            mean, std = image_processor.image_mean, image_processor.image_std
        self._scale = torch.tensor([scale / deviation for deviation in std])
        self._shift = torch.tensor([-middle / deviation for middle, deviation in zip(mean, std, strict=True)])
        self._omits_step = self._gives_same_pixels()

    def prepare(self, pixels: np.ndarray, **options: Any) -> dict[str, Tensor]:
        """The processor's tensors of one picture, with `pixel_values` as uint8 if `floats` can do the last step.

        Args:
            options: keyword arguments of `process`.
        """
        if not self._omits_step:
            return dict(self._process(pixels, **options))
        prepared = dict(self._process(pixels, do_rescale=False, do_normalize=False, **options))
        return prepared | {"pixel_values": prepared["pixel_values"].to(torch.uint8)}

    def floats(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs, with uint8 `pixel_values` converted to the processor's float32 ones, on their device."""
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.dtype != torch.uint8:
            return inputs
        # [patches, 3 * the rest] in families that cut pictures into patches, else [..., 3, H, W].
        by_channel = pixels.unflatten(1, (3, -1)) if pixels.ndim == 2 else pixels
        shape = (3, 1) if pixels.ndim == 2 else (3, 1, 1)
        scale, shift = (part.to(pixels.device).view(shape) for part in (self._scale, self._shift))
        floats = torch.addcmul(shift, by_channel.float(), scale).view(pixels.shape)
        if self._tile_mask is not None:
            is_padding = inputs[self._tile_mask] == 0
            if is_padding.any():
                floats[is_padding] = 0.0
        return inputs | {"pixel_values": floats}

    def _gives_same_pixels(self) -> bool:
        whole = self._process(_TRIAL)["pixel_values"]
        left = self._process(_TRIAL, do_rescale=False, do_normalize=False)
        pixels = left["pixel_values"]
        if not torch.equal(pixels, pixels.to(torch.uint8).to(pixels.dtype)):
            return False
        floats = self.floats({**left, "pixel_values": pixels.to(torch.uint8)})["pixel_values"]
        return floats.shape == whole.shape and torch.allclose(floats, whole.float(), rtol=0.0, atol=1e-5)
