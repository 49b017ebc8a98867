"""What the encoder asks of a VLM family: prompts, prepared pictures, batches, last hidden states."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

PictureInputs = dict[str, Tensor]
"""One prepared picture: the processor's tensors, without a batch axis."""


class Backbone(Protocol):
    """One VLM family. Shapes: B rows, S tokens (padded right), D width of the language model."""

    image_prefix: str
    """What stands for the picture before the text, in this family."""

    def __init__(self, tokenizer: Any, image_processor: Any) -> None: ...

    def token_ids(self, prompts: list[str], *, max_tokens: int) -> list[list[int]]:
        """Token ids as tokenizer and processor would make them together, cut on the right."""
        ...

    def prepare_picture(self, picture: Image.Image) -> PictureInputs:
        """The tensors that the family's image processor makes of one RGB picture."""
        ...

    def collate(self, token_ids: list[list[int]], pictures: list[PictureInputs] | None) -> dict[str, Tensor]:
        """One batch of one modality: all rows with a picture, or (None) all without."""
        ...

    def last_hidden_state(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """[B, S, D] after the final norm; never through the LM head, never with a KV cache."""
        ...


def pad_right(token_ids: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
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
