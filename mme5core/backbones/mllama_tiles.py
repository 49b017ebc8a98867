"""The attention of mllama's vision tower computed exactly in two products without a mask.

The tower always reads all tiles of its canvas. Its mask only hides padding patches from padding patches: a real patch
attends to every patch, a padding patch to the real ones. Each of the two kinds is therefore one attention product,
without the mask [B, 1, L, L] (83 MB for a picture of Llama-3.2-Vision in bfloat16), without the masked pairs, and with
kernels that take no mask. Dropping the padding tiles would be faster still, but would change the embeddings.

Shapes: B pictures, H heads, L patches of all tiles, E width of a head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.models.mllama import modeling_mllama

NAME = "mme5_mllama_tiles"


class Tiles:
    """The real and the padding patches, by a picture's number of real tiles; passed in place of transformers' mask."""

    def __init__(self, aspect_ratio_mask_BT: Tensor, *, num_patches: int, padded_patches: int) -> None:
        by_count = defaultdict(list)
        for row, count in enumerate(aspect_ratio_mask_BT.sum(dim=1).tolist()):
            by_count[int(count)].append(row)
        device, num_tiles = aspect_ratio_mask_BT.device, aspect_ratio_mask_BT.shape[1]
        tile = torch.arange(num_tiles, device=device)[:, None]
        patch = torch.arange(padded_patches, device=device)[None]
        self.groups = []
        for count, rows in by_count.items():
            is_real = ((tile < count) & (patch < num_patches)).flatten()
            places = is_real.nonzero()[:, 0], (~is_real).nonzero()[:, 0]
            self.groups.append((torch.tensor(rows, device=device), *places))


@contextmanager
def unmasked_tiles(vision_model: nn.Module) -> Iterator[None]:
    """Within it, the tower computes its attention by `Tiles`, with the same output."""
    config: Any = vision_model.config

    def tiles(aspect_ratio_mask: Tensor, num_patches: int, target_length: int, dtype: torch.dtype) -> Tiles:
        return Tiles(aspect_ratio_mask, num_patches=num_patches, padded_patches=target_length)

    implementation, prepare = config._attn_implementation, modeling_mllama._prepare_aspect_ratio_attention_mask
    config._attn_implementation = NAME
    modeling_mllama._prepare_aspect_ratio_attention_mask = tiles  # type: ignore[assignment]
    try:
        yield
    finally:
        config._attn_implementation = implementation
        modeling_mllama._prepare_aspect_ratio_attention_mask = prepare


def _attend(
    module: nn.Module,
    query_BHLE: Tensor,
    key_BHLE: Tensor,
    value_BHLE: Tensor,
    tiles: Tiles,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    result_BLHE: Tensor | None = None
    for rows, real, padding in tiles.groups:
        queries, keys, states = (
            part if len(rows) == len(part) else part[rows] for part in (query_BHLE, key_BHLE, value_BHLE)
        )
        of_real = F.scaled_dot_product_attention(queries[:, :, real], keys, states, scale=scaling)
        # As the product: under autocast its dtype is not that of the queries, where a quantised layer computed them.
        result = of_real.new_empty(queries.transpose(1, 2).shape)
        result[:, real] = of_real.transpose(1, 2)
        if len(padding):
            of_padding = F.scaled_dot_product_attention(
                queries[:, :, padding], keys[:, :, real], states[:, :, real], scale=scaling
            )
            result[:, padding] = of_padding.transpose(1, 2)
        if result_BLHE is None:
            result_BLHE = result.new_empty(query_BHLE.transpose(1, 2).shape)
        result_BLHE[rows] = result
    assert result_BLHE is not None, "a batch has rows"
    return result_BLHE, None


AttentionInterface.register(NAME, _attend)
