"""Rows that begin with the same tokens: the beginning is computed once, and every row goes on from its keys and values.

Shapes: B rows, S tokens of the longest row, P of the shared prefix, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import Tensor
from transformers import DynamicCache

from mme5core.backbones.protocol import Features, base_model
from mme5core.encoder.module import EmbeddingModel
from mme5core.encoder.prepare import PreparedBatch

LEAST_SAVED = 0.2
"""Share of a batch's tokens below which a second, smaller pass would cost more than it saves."""
LEAST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the rows of a batch begin with alike: tokens, and the pictures that they show."""

    num_tokens: int
    num_pictures: int


def states(module: EmbeddingModel, batch: PreparedBatch) -> Tensor:
    """`EmbeddingModel.states`, with a prefix that the rows share computed once where that pays."""
    backbone = module.backbone
    features = module.features_of(batch) if batch.pictures else [[] for _ in batch.rows]
    prefix = prefix_of(module, batch, features)
    num_rows, length = batch.inputs["input_ids"].shape
    has_unknown_pictures = not batch.pictures and "pixel_values" in batch.inputs
    saved = prefix.num_tokens * (num_rows - 1)
    if has_unknown_pictures or saved < max(LEAST_TOKENS, LEAST_SAVED * num_rows * length):
        return module.states(replace(batch, features=features) if batch.pictures else batch)
    inputs = module.on_device(batch.inputs)
    positions = backbone.positions(module.model, inputs)
    cache = DynamicCache(config=base_model(module.model).config.get_text_config())
    first, rest = slice(0, prefix.num_tokens), slice(prefix.num_tokens, None)
    shared = _part(inputs, slice(0, 1), first, positions, whole_mask=False)
    before = [of_row[: prefix.num_pictures] for of_row in features[:1]]
    backbone.pooled(module.model, shared, before if prefix.num_pictures else None, cache)
    cache.batch_repeat_interleave(num_rows)
    after = [of_row[prefix.num_pictures :] for of_row in features]
    own = _part(inputs, slice(None), rest, positions, whole_mask=True)
    return backbone.pooled(module.model, own, after if any(after) else None, cache)


def prefix_of(module: EmbeddingModel, batch: PreparedBatch, features: Sequence[Sequence[Features]]) -> Prefix:
    """The longest beginning that all rows share, pictures whole; every row keeps a token of its own."""
    backbone = module.backbone
    ids_BS, mask_BS = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    is_same_S = ((ids_BS == ids_BS[:1]) & (mask_BS == 1)).all(dim=0)
    num_tokens = int(is_same_S.long().cumprod(0).sum())
    num_tokens = min(num_tokens, int(mask_BS.sum(dim=1).min()) - 1)
    pictures_of = batch.pictures_of or [()] * len(batch.rows)
    same = [len(set(places)) == 1 for places in zip(*pictures_of, strict=False)]
    num_pictures = (same.index(False) if False in same else len(same)) if same else 0
    token_id = getattr(backbone, "image_token_id", None)
    places = (ids_BS[0] == token_id).nonzero()[:, 0].tolist() if token_id is not None else []
    # In the families whose pictures become tokens, a picture has as many as features; in the other it has one.
    sizes = [len(feature[0]) if backbone.sees_late_pictures else 1 for feature in features[0][:num_pictures]]
    ends = [0, *accumulate(sizes)]
    while num_pictures and (len(places) < ends[num_pictures] or num_tokens <= places[ends[num_pictures] - 1]):
        num_pictures -= 1  # the prefix ends before the last token of this picture
    if len(places) > ends[num_pictures]:
        num_tokens = min(num_tokens, places[ends[num_pictures]])  # pictures look alike as tokens
    if not backbone.sees_late_pictures and any(len(of_row) > num_pictures for of_row in features):
        return Prefix(0, 0)
    return Prefix(num_tokens, num_pictures)


def _part(
    inputs: dict[str, Tensor], rows: slice, tokens: slice, positions: Tensor | None, *, whole_mask: bool
) -> dict[str, Tensor]:
    """Some rows and tokens of a batch; what belongs to pictures follows the rows where it can."""
    part = {
        "input_ids": inputs["input_ids"][rows, tokens],
        "attention_mask": inputs["attention_mask"][rows, slice(None) if whole_mask else tokens],
    }
    if "cross_attention_mask" in inputs:
        part["cross_attention_mask"] = inputs["cross_attention_mask"][rows, slice(None) if whole_mask else tokens]
    if positions is not None:
        part["position_ids"] = positions[..., rows, tokens]
    return part
