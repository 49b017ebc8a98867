"""Pixels as bytes until they are on the device: what comes of them is what the processor would have made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mme5core import Encoder
from mme5core.backbones.byte_pixels import BytePixels
from mme5core.backbones.loading import load_image_processor
from tests.core.backbones.families import FAMILIES, UNKNOWN
from tests.core.contents import picture

SIZES = [(20, 30), (200, 50), (50, 200), (300, 300), (33, 121), (28, 28)]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in UNKNOWN])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_the_processors_own(
    family: str, size: tuple[int, int], encoder_of: Callable[[str], Encoder]
) -> None:
    backbone: Any = encoder_of(family).backbone
    shown = picture(7, size)
    processor, options = backbone.image_processor, {"input_data_format": "channels_last", "return_tensors": "pt"}
    pixels = np.asarray(shown)
    expected = processor([[pixels]] if family == "mllama" else [pixels], **options)["pixel_values"]
    prepared = backbone.prepare_picture(shown)
    assert prepared["pixel_values"].dtype == torch.uint8
    found = backbone.float_pixels(prepared)["pixel_values"]
    assert found.shape == (expected[0] if family == "mllama" else expected).shape
    assert float((found - expected).abs().max()) < 1e-6


def test_a_processor_that_does_something_else_keeps_its_last_step(encoder_of: Callable[[str], Encoder]) -> None:
    processor = load_image_processor(encoder_of("clip").base)

    def inverted(pixels: np.ndarray, **options: Any) -> dict[str, torch.Tensor]:
        made = processor([pixels], input_data_format="channels_last", return_tensors="pt", **options)
        return {"pixel_values": made["pixel_values"] if options else 1.0 - made["pixel_values"]}

    pixels = np.asarray(picture(1, (40, 40)))
    prepared = BytePixels(processor, inverted).prepare(pixels)
    assert torch.equal(prepared["pixel_values"], inverted(pixels)["pixel_values"])
