"""Llama-3.2-Vision: a vision tower over tiles, which the language model reads through cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from mme5core.backbones.byte_pixels import BytePixels
from mme5core.backbones.mllama_tiles import unmasked_tiles
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

PIXELS = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


class Mllama:
    image_prefix = "<|image|><|begin_of_text|>"
    image_token = "<|image|>"
    max_pictures: int | None = None
    picture_side: int | None = None
    positions_of_tokens: str = OWN_POSITIONS
    # A token before the pictures attends to all of them without a mask: padding a row with empty pictures would change
    # its embedding.
    mixes_picture_counts = False
    reads_several_coarsely = False
    default_style = "mme5"
    pooling = "last"
    knows_tower = True
    needs_sizes = False
    sees_late_pictures = False  # the cross-attention's keys are cached as a whole
    max_text_tokens: int | None = None
    tower = ("vision_model", "multi_modal_projector")

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.family = str(config.model_type)
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self._byte_pixels = BytePixels(image_processor, self._process, tile_mask="aspect_ratio_mask")

    def token_ids(
        self, prompts: Sequence[str], sizes: Sequence[Sequence[PictureSize]], *, max_tokens: int
    ) -> list[list[int]]:
        # The processor puts a BOS before a text without picture and the tokenizer one before everything, so the
        # published checkpoints were trained on "BOS BOS text" and "BOS image BOS text".
        bos = self.tokenizer.bos_token
        texts = [prompt if prompt.startswith(self.image_prefix) else bos + prompt for prompt in prompts]
        counts = [len(of_row) for of_row in sizes]
        return tokenize(self.tokenizer, texts, counts, image_prefix=self.image_prefix, max_tokens=max_tokens)

    def expanded(self, row: list[int], sizes: Sequence[PictureSize]) -> list[int]:
        if row.count(self.image_token_id) < len(sizes):
            raise ValueError(f"{row.count(self.image_token_id)} tokens of pictures for {len(sizes)} pictures")
        return row

    def prepare_picture(self, picture: Image.Image, *, is_one_of_several: bool = False) -> PictureInputs:
        return self._byte_pixels.prepare(np.asarray(_thick_enough(picture, self.image_processor.size["height"])))

    def float_pixels(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._byte_pixels.floats(inputs)

    def _process(self, pixels: np.ndarray, **options: Any) -> PictureInputs:
        # Without `input_data_format`, the processor mistakes a side of 1 or 3 pixels for the channels.
        inputs = self.image_processor([[pixels]], input_data_format="channels_last", return_tensors="pt", **options)
        return {name: inputs[name][0] for name in PIXELS}

    def collate(
        self, token_ids: Sequence[list[int]], pictures: Sequence[Sequence[PictureInputs]] | None
    ) -> dict[str, Tensor]:
        input_ids, attention_mask = pad_right(token_ids, self.tokenizer.pad_token_id)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if pictures is not None:
            inputs |= {
                name: torch.stack([torch.cat([picture[name] for picture in of_row]) for of_row in pictures])
                for name in pictures[0][0]
            }
            inputs["cross_attention_mask"] = self._cross_attention_mask(token_ids, inputs["aspect_ratio_mask"])
        return inputs

    def positions(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor | None:
        return None

    def features(self, model: nn.Module, pictures: Sequence[PictureInputs]) -> list[Features]:
        """The projected states of each picture's tiles, padding tiles included.

        Tokens before the picture attend to all tiles without a mask.
        """
        base = base_model(model)
        inputs = {name: torch.stack([picture[name] for picture in pictures]) for name in PIXELS}
        with unmasked_tiles(base.vision_model):
            state_B1TPD = base.vision_model(**inputs).last_hidden_state
        # The cross-attention reads the tiles of a picture as one sequence.
        return [(tiles.flatten(0, 1).clone(),) for tiles in base.multi_modal_projector(state_B1TPD[:, 0])]

    def pooled(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        features: Sequence[Sequence[Features]] | None = None,
        cache: Any = None,
    ) -> Tensor:
        if features is not None:
            inputs = {name: tensor for name, tensor in inputs.items() if name not in PIXELS}
            inputs["cross_attention_states"] = torch.stack(
                [torch.cat([feature for (feature,) in of_row]) for of_row in features]
            )
        state_BSD = model(**inputs, use_cache=cache is not None, past_key_values=cache).last_hidden_state
        return last_real_state(state_BSD, inputs["attention_mask"][:, -state_BSD.shape[1] :])

    def _cross_attention_mask(self, token_ids: Sequence[list[int]], tile_mask_BNT: Tensor) -> Tensor:
        """[B, S, N, T] for rows of N pictures: the tokens from a picture's own to the next one's attend to its real
        tiles."""
        spans = [get_cross_attention_token_mask(ids, self.image_token_id) for ids in token_ids]
        num_tiles, max_tiles = tile_mask_BNT.sum(dim=-1).tolist(), tile_mask_BNT.shape[-1]
        longest = max(len(ids) for ids in token_ids)
        return torch.from_numpy(
            convert_sparse_cross_attention_mask_to_dense(spans, num_tiles, max_num_tiles=max_tiles, length=longest)
        )


def _thick_enough(picture: Image.Image, tile_size: int) -> Image.Image:
    """The picture, its short side enlarged if the processor would scale it to 0 pixels.

    The longest canvas is 4 tiles, so that this happens below 1/(4 tile_size) of the long side.
    """
    width, height = picture.size
    shortest = max(1, -(-max(width, height) // (4 * tile_size)))
    if min(width, height) >= shortest:
        return picture
    return picture.resize((max(width, shortest), max(height, shortest)))
