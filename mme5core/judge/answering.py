"""A vision-language model that is asked questions, and whose answer is read from logits.

Shapes: B rows, D width, A possible tokens of an answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mme5core.backbones import Backbone
from mme5core.encoder.loading import LoadedModel, check_finite, default_device, load_model
from mme5core.encoder.module import EmbeddingModel
from mme5core.judge.prompt_writer import MAX_TEXT_TOKENS, PromptWriter


class AnsweringModel:
    """
    Args:
        head: the model's layer from states to logits.
        max_text_tokens: of the text of each query and candidate.
    """

    def __init__(
        self, model: nn.Module, head: nn.Module, backbone: Backbone, *, max_text_tokens: int = MAX_TEXT_TOKENS
    ) -> None:
        self.module = EmbeddingModel(model, backbone)
        self.backbone = backbone
        self.prompts = PromptWriter(backbone, max_text_tokens)
        self.head = head
        self._scale = _logit_scale(model.config)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        dtype: str = "auto",
        *,
        adapter: str | os.PathLike[str] | None = None,
        attention: str | None = None,
        remote_code: bool = False,
    ) -> AnsweringModel:
        """A model from the checkpoint of a vision-language model, a reranker, an adapter folder or a hub id.

        Args:
            device, dtype, adapter, attention, remote_code: as `Encoder.load`.

        Raises:
            ValueError: as `Encoder.load`; or the model has no language-model head.
        """
        loaded = load_with_head(
            path,
            adapter=adapter,
            dtype=dtype,
            merge_adapter=True,
            attention=attention,
            remote_code=remote_code,
            quantize=None,
        )
        limit = loaded.settings.get("max_text_tokens", MAX_TEXT_TOKENS)
        answering = cls(loaded.model, loaded.head, loaded.backbone, max_text_tokens=limit)
        where = default_device() if device == "auto" else torch.device(device)
        answering.module.to(where)
        answering.head.to(where)
        check_finite(answering.module.model, str(path))
        answering.module.eval()
        return answering

    def logits(self, state_BD: Tensor, token_ids: Sequence[int] | None = None) -> Tensor:
        """float32 [B, A]: of some tokens after each state; None: of all tokens."""
        head: Any = self.head
        rows = slice(None) if token_ids is None else list(token_ids)
        logit_BA = state_BD.float() @ head.weight[rows].float().T
        bias = getattr(head, "bias", None)
        return self._scale(logit_BA if bias is None else logit_BA + bias[rows].float())


def load_with_head(path: str | os.PathLike[str], **options: Any) -> LoadedModel:
    """`load_model` of a model that can answer.

    Raises:
        ValueError: as `load_model`; or the model has no language-model head.
    """
    loaded = load_model(path, **options, with_head=True)
    if loaded.head is None:
        raise ValueError(f"the model at {str(path)!r} has no language-model head: it cannot answer")
    return loaded


def _logit_scale(config: Any) -> Callable[[Tensor], Tensor]:
    """What a family does with its logits after the head."""
    text = config.get_text_config()
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    cap, times, over = (getattr(text, name, None) for name in names)

    def scaled(logits: Tensor) -> Tensor:
        logits = logits * (times or 1.0) / (over or 1.0)
        return cap * torch.tanh(logits / cap) if cap else logits

    return scaled
