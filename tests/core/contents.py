"""Texts and pictures for tests of encoders."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mme5core import Content

SIZES = [(60, 40), (40, 60), (33, 100), (28, 28), (90, 88)]


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Noise, width x height."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mixed() -> list[Content]:
    """Texts, pictures of several sizes, and both together."""
    texts = ["a cat", "a dog on a red sofa, asleep", "猫", "x"]
    return (
        [Content(text) for text in texts]
        + [Content(image=picture(seed, size)) for seed, size in enumerate(SIZES)]
        + [Content(text, picture(9, (50, 50))) for text in texts[:2]]
    )
