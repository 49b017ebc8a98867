"""The attention of mllama's vision tower in two products without a mask, exactly.

The tower always sees all tiles of its canvas. Its mask hides padding from padding alone: a real patch attends to every
patch, one of padding to the real ones. So each of the two kinds has a product of its own, without the mask of [B, 1,
L, L] (83 MB for a picture of Llama-3.2-Vision in bfloat16), without the pairs that it hides, and open to kernels that
take no mask. Dropping the padding tiles would be faster still, and another model.

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
    """Which patches are real, by the number of a picture's real tiles; stands in for the library's mask."""

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
    """Within it the tower computes its attention by `Tiles`, and gives what it gave before."""
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
    result_BLHE = torch.empty_like(query_BHLE.transpose(1, 2), memory_format=torch.contiguous_format)
    for rows, real, padding in tiles.groups:
        query, key, value = (
            part if len(rows) == len(part) else part[rows] for part in (query_BHLE, key_BHLE, value_BHLE)
        )
        result = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        seen_by_real = F.scaled_dot_product_attention(query[:, :, real], key, value, scale=scaling)
        result[:, real] = seen_by_real.transpose(1, 2)
        if len(padding):
            seen_by_padding = F.scaled_dot_product_attention(
                query[:, :, padding], key[:, :, real], value[:, :, real], scale=scaling
            )
            result[:, padding] = seen_by_padding.transpose(1, 2)
        result_BLHE[rows] = result
    return result_BLHE, None


AttentionInterface.register(NAME, _attend)
