"""A backbone, a prompt style, a pooling and an adapter: contents in, unit vectors out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from mme5core.ahead import ahead
from mme5core.backbones import Backbone
from mme5core.backbones.protocol import OWN_POSITIONS, POSITIONS, PictureInputs
from mme5core.backbones.qwen_vl import QwenVL
from mme5core.encoder.loading import check_finite, default_device, load_model
from mme5core.encoder.module import EmbeddingModel
from mme5core.encoder.prepare import PreparedBatch, prepare_batches, prepare_picture, sizes_of
from mme5core.encoder.saving import save_model
from mme5core.images import BadImage
from mme5core.model_folder import check_embeds, config_width
from mme5core.prompt_styles import DEFAULT_STYLE, check_style, render
from mme5core.types import Content

MAX_TOKENS = 256
_ONE_AT_A_TIME = threading.Lock()  # some backbones patch transformers during a pass, which other threads would see


class Encoder:
    """Texts and pictures to unit vectors.

    >>> Encoder.load("no/such/folder")
    Traceback (most recent call last):
        ...
    ValueError: no model at 'no/such/folder': not a folder, and not a hub id (owner/name)
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: Backbone,
        *,
        prompt_style: str = DEFAULT_STYLE,
        max_tokens: int = MAX_TOKENS,
        base: str = "",
        merged_adapter: Path | None = None,
    ) -> None:
        self.module = EmbeddingModel(model, backbone)
        self.backbone = backbone
        self.prompt_style = check_style(prompt_style)
        self.max_tokens = max_tokens
        self.base = base
        self._merged_adapter = merged_adapter

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        adapter: str | os.PathLike[str] | None = None,
        prompt_style: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        *,
        merge_adapter: bool = True,
        attention: str | None = None,
        remote_code: bool = False,
        quantize: str | None = None,
        picture_side: int | None = None,
        positions: str | None = None,
    ) -> Encoder:
        """An encoder from a checkpoint folder, a `train` model folder, an adapter folder or a hub id.

        Args:
            adapter: a LoRA adapter folder to put on the checkpoint.
            prompt_style: None takes the one stored with the model, else "mme5" ("plain" for dual encoders).
            device: "auto" is the first accelerator, else the CPU.
            dtype: "auto" is the checkpoint's own; else a torch name such as "bfloat16".
            merge_adapter: fold the adapter into the weights (faster); False keeps it separate, for training.
            attention: transformers' `attn_implementation`; None: the library's choice.
            remote_code: run code that comes with the checkpoint. It can do anything that you can.
            quantize: "nf4" holds the weights in 4 bits, as QLoRA does; needs a GPU and bitsandbytes.
            picture_side: pictures are made squares of so many pixels a side; None: as stored with the model, else the
                processor decides.
            positions: "in_a_row": a number for each token, those of pictures too; None: as stored, else the model's.

        Raises:
            ValueError: no model at `path`, no tokenizer or image processor beside it, an unknown family, dtype or
                style, a base that is not the one the adapter was trained on, an adapter that does not fit the model,
                or a weight that is NaN or infinite; or the model is a reranker.
        """
        check_embeds(path, adapter)
        loaded = load_model(
            path,
            adapter=adapter,
            dtype=dtype,
            merge_adapter=merge_adapter,
            attention=attention,
            remote_code=remote_code,
            quantize=quantize,
        )
        stored = loaded.settings
        encoder = cls(
            loaded.model,
            loaded.backbone,
            prompt_style=prompt_style or stored.get("prompt_style", loaded.backbone.default_style),
            max_tokens=stored.get("max_tokens", MAX_TOKENS),
            base=loaded.base,
            merged_adapter=loaded.merged_adapter,
        )
        encoder.set_reading(picture_side or stored.get("picture_side"), positions or stored.get("positions"))
        if quantize is None:  # quantised weights were loaded onto the GPU
            encoder.module.to(default_device() if device == "auto" else torch.device(device))
        check_finite(encoder.module.model, str(path))
        encoder.module.eval()
        return encoder

    def set_reading(self, picture_side: int | None, positions: str | None) -> None:
        """How pictures are read; stored with the model. None: as the model has it.

        Raises:
            ValueError: the family has no such positions.
        """
        wanted = positions or OWN_POSITIONS
        if wanted not in POSITIONS or (wanted != OWN_POSITIONS and not isinstance(self.backbone, QwenVL)):
            raise ValueError(f"positions={wanted}: {self.backbone.family} has only {OWN_POSITIONS!r}")
        self.backbone.picture_side, self.backbone.positions_of_tokens = picture_side, wanted

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dimension(self) -> int:
        config: Any = self.module.model.config
        width = config_width(config.to_dict())
        assert width is not None, "a loaded configuration has its defaults"
        return width

    def embed(
        self,
        contents: Sequence[Content],
        instruction: str | Sequence[str | None] | None = None,
        *,
        batch_size: int = 32,
        max_batch_tokens: int = 16_384,
    ) -> np.ndarray:
        """Unit vectors of `contents`, in their order: float32 [N, D].

        Args:
            instruction: one for all, or one per content; None for none.
            batch_size: most rows in one forward pass.
            max_batch_tokens: upper limit of rows x longest row in one forward pass.

        Raises:
            ValueError: a picture cannot be read (`images.BadImage`), or a content has more pictures than the family
                takes; the message names the place of the content.
        """
        for place, content in enumerate(contents):
            if not isinstance(content, Content):
                raise TypeError(f"content {place}: Content(text=..., image=...) expected, not {type(content).__name__}")
        vector_ND = np.zeros((len(contents), self.dimension), dtype=np.float32)
        instructions = per_content(instruction, len(contents))
        for rows, vector_BD in self.stream(
            contents, instructions, max_batch_rows=batch_size, max_batch_tokens=max_batch_tokens
        ):
            vector_ND[rows] = vector_BD
        return vector_ND

    def stream(
        self, contents: Sequence[Content], instructions: Sequence[str | None], **options: Any
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yields (places in `contents`, their vectors [B, D]) for each batch, while a thread prepares the next ones.

        Args:
            options: keyword arguments of `prepare.prepare_batches`.
        """
        for batch in ahead(self.batches(contents, instructions, share_pictures=True, **options)):
            yield batch.rows, self.embed_batch(batch)

    def embed_batch(self, batch: PreparedBatch) -> np.ndarray:
        """The vectors of one prepared batch: float32 [B, D].

        Raises:
            ValueError: the model computed NaN or infinity.
        """
        with _ONE_AT_A_TIME, torch.inference_mode():
            vector_BD: np.ndarray = self.module.embed_batch(batch).cpu().numpy()
        if not np.isfinite(vector_BD).all():
            raise ValueError("the model gave NaN or infinity; try dtype=float32")
        return vector_BD

    def batches(
        self, contents: Sequence[Content], instructions: Sequence[str | None], **options: Any
    ) -> Iterator[PreparedBatch]:
        """The forward passes for `contents`; `options` are keyword arguments of `prepare.prepare_batches`."""
        prompts = self._prompts(contents, instructions)
        return prepare_batches(self.backbone, contents, prompts, max_tokens=self.max_tokens, **options)

    def token_ids(self, contents: Sequence[Content], instructions: Sequence[str | None]) -> list[list[int]]:
        """Token ids of each content's prompt, cut to `max_tokens`.

        Raises:
            ValueError: a picture cannot be read, or a content has more than the family takes; the message names the
                place of the content.
        """
        sizes = []
        for place, content in enumerate(contents):
            try:
                sizes.append(sizes_of(self.backbone, content))
            except BadImage as error:
                raise ValueError(f"content {place}: {error}") from None
        return self.backbone.token_ids(self._prompts(contents, instructions), sizes, max_tokens=self.max_tokens)

    def prepare_picture(self, content: Content, place: int = 0) -> PictureInputs:
        """The tensors of the content's picture at `place`."""
        return prepare_picture(self.backbone, content, place)

    def _prompts(self, contents: Sequence[Content], instructions: Sequence[str | None]) -> list[str]:
        return [
            render(content, instruction, style=self.prompt_style, image_prefix=self.backbone.image_prefix)
            for content, instruction in zip(contents, instructions, strict=True)
        ]

    def checkpoint_activations(self) -> None:
        """Activation checkpointing: keep only each layer's input and recompute the rest in the backward pass."""
        model: Any = self.module.model
        # renamed in transformers 5.23
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and name.endswith(("layers", "blocks")):
                for layer in module:
                    # mllama's vision tower ignores the switch.
                    if not isinstance(layer, GradientCheckpointingLayer):
                        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def save(self, folder: str | os.PathLike[str], *, include_base: bool = False) -> None:
        """Write the adapter, prompt style and pooling; the base by reference, or its weights with `include_base`.

        An adapter that `load` folded into the weights is copied from its own folder.
        """
        settings: dict[str, Any] = {
            "format": 1,
            "prompt_style": self.prompt_style,
            "pooling": self.backbone.pooling,
            "normalize": True,
            "max_tokens": self.max_tokens,
            "dimension": self.dimension,
        }
        # Left out where the model decides, so that the identities of models from before stay.
        if self.backbone.picture_side is not None:
            settings["picture_side"] = self.backbone.picture_side
        if self.backbone.positions_of_tokens != OWN_POSITIONS:
            settings["positions"] = self.backbone.positions_of_tokens
        save_model(
            Path(folder),
            self.module.model,
            self.backbone,
            settings=settings,
            base=self.base,
            merged_adapter=self._merged_adapter,
            include_base=include_base,
        )


def per_content(instruction: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """One instruction per content."""
    if instruction is None or isinstance(instruction, str):
        return [instruction] * count
    if len(instruction) != count:
        raise ValueError(f"{len(instruction)} instructions for {count} contents")
    return list(instruction)
