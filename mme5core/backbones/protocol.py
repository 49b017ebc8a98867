"""The interface of a model family: token ids, prepared pictures, batches, vision features, pooled states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

PictureInputs = dict[str, Tensor]
"""One prepared picture: the processor's tensors, as the family's `collate` takes them."""

Features = tuple[Tensor, ...]
"""The vision tower's output for one picture, as the language model takes it."""

PictureSize = tuple[int, int]
"""Width and height in pixels, EXIF orientation applied."""


CHARACTERS_PER_TOKEN = 100
"""Hardly any text has so many; one that does is tokenised whole."""
OWN_POSITIONS, IN_A_ROW = POSITIONS = ("own", "in_a_row")
FEW_TOKENS = 16
"""More than the special tokens of a prompt."""


class Backbone(Protocol):
    """One model family. Shapes: B rows, S tokens (padded right), D width of the embedding."""

    family: str
    """The family's name, for messages."""
    image_prefix: str
    """The text that marks a picture in the prompt; it precedes the text, once for each picture."""
    max_pictures: int | None
    """Most pictures in one content; None: any number."""
    picture_side: int | None
    """Pictures are made squares of so many pixels a side, whatever their shape; None: the processor decides."""
    positions_of_tokens: str
    """OWN_POSITIONS, or IN_A_ROW where the family has the choice: a number for each token, those of pictures too."""
    mixes_picture_counts: bool
    """Whether rows of different numbers of pictures, all with at least one, may share a batch."""
    reads_several_coarsely: bool
    """Whether a picture that is one of several is prepared differently from a single one."""
    default_style: str
    """The prompt style of a checkpoint that has none stored."""
    pooling: str
    """How the vector is made: from the "last" token's state, or by a tower's own "projection"."""
    tower: tuple[str, ...]
    """Names of the model's parts that process pictures before they are combined with a text."""
    knows_tower: bool
    """Whether `features` is available; otherwise the tower runs for every row."""
    needs_sizes: bool
    """Whether a row's tokens depend on the sizes of its pictures; otherwise any size may be passed."""
    sees_late_pictures: bool
    """Whether tokens that follow a cache may show pictures that the cache does not know."""
    tokenizer: Any
    max_text_tokens: int | None
    """Most tokens of a text that the model can read, whatever `max_tokens` is; None: no limit of its own."""

    def __init__(self, tokenizer: Any, image_processor: Any, config: Any) -> None: ...

    def token_ids(
        self, prompts: Sequence[str], sizes: Sequence[Sequence[PictureSize]], *, max_tokens: int
    ) -> list[list[int]]:
        """Token ids as tokenizer and processor make them together; the text is truncated on the right.

        Args:
            sizes: for each row, the sizes of its pictures; empty for a row without.
            max_tokens: most tokens of a row, not counting the tokens that replace a picture's single token, and the
                prefixes of all pictures but the first. Neither are ever cut.
        """
        ...

    def expanded(self, row: list[int], sizes: Sequence[PictureSize]) -> list[int]:
        """The row of a prompt, with the single token of each picture replaced by all its tokens.

        Raises:
            ValueError: it has fewer tokens of pictures than pictures.
        """
        ...

    def prepare_picture(self, picture: Image.Image, *, is_one_of_several: bool = False) -> PictureInputs:
        """The image processor's tensors of one RGB picture; its pixels may still be bytes.

        Args:
            is_one_of_several: the content has other pictures too.
        """
        ...

    def float_pixels(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs, on the model's device, with float32 pixels where `prepare_picture` left bytes."""
        ...

    def collate(
        self, token_ids: Sequence[list[int]], pictures: Sequence[Sequence[PictureInputs]] | None
    ) -> dict[str, Tensor]:
        """One batch of one modality: all rows with pictures, or (None) all without.

        Args:
            pictures: the pictures of each row; without pixels if `pooled` will get features instead.
        """
        ...

    def positions(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor | None:
        """Of the tokens of whole rows, [..., B, S], where a cache would not tell the model; None: it counts them."""
        ...

    def features(self, model: nn.Module, pictures: Sequence[PictureInputs]) -> list[Features]:
        """The vision tower's output for each picture, which does not depend on any text."""
        ...

    def pooled(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        features: Sequence[Sequence[Features]] | None = None,
        cache: Any = None,
    ) -> Tensor:
        """The rows' vectors [B, D], not yet normalised. Computes no LM head.

        Args:
            features: those of each row's pictures, in their order; they replace the pixels in `inputs`.
            cache: of transformers, holding keys and values of the tokens before these; it grows by these. `inputs`
                have a mask over all tokens, and `collate`'s further inputs of the whole rows. None: no cache is made.
        """
        ...


def without_pixels(picture: PictureInputs) -> PictureInputs:
    """The tensors that a row needs beside the features of a picture."""
    return {name: tensor for name, tensor in picture.items() if name != "pixel_values"}


def tokenize(
    tokenizer: Any, prompts: Sequence[str], num_pictures: Sequence[int], *, image_prefix: str, max_tokens: int
) -> list[list[int]]:
    """Ids of each prompt, truncated on the right to `max_tokens`.

    The prefixes of all pictures but the first are not counted, so that no picture of a long list is cut off.

    Args:
        num_pictures: number of pictures of each prompt, which begins with as many prefixes.
    """
    allowed = [max_tokens] * len(prompts)
    if max(num_pictures, default=0) > 1:
        prefix_tokens = len(tokenizer(image_prefix * 2)["input_ids"]) - len(tokenizer(image_prefix)["input_ids"])
        allowed = [max_tokens + prefix_tokens * max(0, count - 1) for count in num_pictures]
    token_ids: list[list[int]] = [[] for _ in prompts]
    for limit in dict.fromkeys(allowed):
        rows = [row for row, own in enumerate(allowed) if own == limit]
        for row, ids in zip(rows, truncated_ids(tokenizer, [prompts[row] for row in rows], limit), strict=True):
            token_ids[row] = ids
    return token_ids


def truncated_ids(tokenizer: Any, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Ids of each text, truncated to `limit`; of a text of megabytes only the beginning is tokenised."""
    most = CHARACTERS_PER_TOKEN * limit
    beginnings = [text[:most] for text in texts]
    token_ids: list[list[int]] = tokenizer(beginnings, truncation=True, max_length=limit)["input_ids"]
    for row, text in enumerate(texts):
        if len(text) > most and len(token_ids[row]) < limit:
            (token_ids[row],) = tokenizer([text], truncation=True, max_length=limit)["input_ids"]
    return token_ids


def cut_rows(
    backbone: Backbone,
    prompts: Sequence[str],
    sizes: Sequence[Sequence[PictureSize]],
    token_ids: Sequence[list[int]],
    *,
    max_tokens: int,
) -> list[int]:
    """The rows whose prompts had more tokens than `token_ids` holds.

    Args:
        token_ids: what `Backbone.token_ids` has made of the prompts.
    """
    limit = min(max_tokens, backbone.max_text_tokens or max_tokens)
    # A token has at least a byte, so no shorter prompt reaches the limit.
    rows = [
        row
        for row, prompt in enumerate(prompts)
        if prompt and len(token_ids[row]) >= limit and len(prompt.encode()) >= limit - FEW_TOKENS
    ]
    if not rows:
        return []
    if backbone.max_text_tokens is None:
        longer = backbone.token_ids(
            [prompts[row] for row in rows], [sizes[row] for row in rows], max_tokens=max_tokens + 1
        )
    else:
        longer = truncated_ids(backbone.tokenizer, [prompts[row] for row in rows], limit + 1)
    return [row for row, ids in zip(rows, longer, strict=True) if len(ids) > len(token_ids[row])]


def pad_right(token_ids: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both int64 [B, S].

    >>> ids, mask = pad_right([[5, 6, 7], [8]], pad_id=0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    longest = max(len(ids) for ids in token_ids)
    input_ids = torch.full((len(token_ids), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(token_ids), longest), dtype=torch.long)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


def last_real_state(state_BSD: Tensor, attention_mask_BS: Tensor) -> Tensor:
    """[B, D]: each row's state at the last 1 of its mask, whichever side the padding is on."""
    positions = torch.arange(1, attention_mask_BS.shape[1] + 1, device=attention_mask_BS.device)
    last_B = (attention_mask_BS * positions).argmax(dim=1)
    return state_BSD[torch.arange(len(last_B), device=last_B.device), last_B]


def base_model(model: nn.Module) -> Any:
    """The model without its adapter, if it has one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
