"""The tower's attention in two products gives what the library's masked one gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mme5core import Encoder
from mme5core.backbones.mllama import PIXELS
from mme5core.backbones.mllama_tiles import unmasked_tiles
from tests.core.contents import picture

SIZES = [(28, 28), (20, 60), (60, 20), (100, 100), (25, 25), (28, 112)]

NUM_TILES = [1, 3, 3, 4, 1, 4]


@pytest.mark.parametrize("places", [[0], [3], [0, 4], [0, 1, 2, 3, 4, 5]])
def test_every_patch_is_what_it_was(places: list[int], encoder_of: Callable[[str], Encoder]) -> None:
    encoder = encoder_of("mllama")
    prepared = [encoder.backbone.prepare_picture(picture(place, SIZES[place])) for place in places]
    counts = [int(inputs["aspect_ratio_mask"].sum()) for inputs in prepared]
    assert counts == [NUM_TILES[place] for place in places]
    inputs = encoder.backbone.float_pixels({name: torch.stack([p[name] for p in prepared]) for name in PIXELS})
    tower = encoder.module.model.vision_model
    with torch.inference_mode():
        expected = tower(**inputs).last_hidden_state
        with unmasked_tiles(tower):  # type: ignore[arg-type]
            found = tower(**inputs).last_hidden_state
        again = tower(**inputs).last_hidden_state
    assert float((found - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    assert torch.equal(again, expected)


def test_layers_that_leave_autocast_are_understood(encoder_of: Callable[[str], Encoder]) -> None:
    # A layer in nf4 gives its own dtype, float32 here, where the product after it is rounded to bfloat16.
    encoder = encoder_of("mllama")
    prepared = encoder.backbone.prepare_picture(picture(0, (20, 60)))
    inputs = encoder.backbone.float_pixels({name: prepared[name][None] for name in PIXELS})
    tower = encoder.module.model.vision_model
    hooks = [
        module.register_forward_hook(lambda module, args, output: output.float())
        for name, module in tower.named_modules()  # type: ignore[union-attr, operator]
        if name.endswith(("q_proj", "k_proj", "v_proj"))
    ]
    assert hooks
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = tower(**inputs).last_hidden_state  # type: ignore[operator]
        with unmasked_tiles(tower):  # type: ignore[arg-type]
            states = tower(**inputs).last_hidden_state  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    assert float((states - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_padding_tiles_may_not_simply_be_dropped(encoder_of: Callable[[str], Encoder]) -> None:
    encoder = encoder_of("mllama")
    prepared = encoder.backbone.prepare_picture(picture(0, (28, 28)))
    inputs = encoder.backbone.float_pixels({name: value[None] for name, value in prepared.items()})
    changed = inputs | {"pixel_values": inputs["pixel_values"].clone()}
    changed["pixel_values"][:, :, 1:] = 1.0  # no more than padding
    tower = encoder.module.model.vision_model
    with torch.inference_mode(), unmasked_tiles(tower):  # type: ignore[arg-type]
        first, second = (tower(**given).last_hidden_state[:, :, 0] for given in (inputs, changed))
    assert float((first - second).abs().max()) > 1e-3 * float(first.abs().max())
