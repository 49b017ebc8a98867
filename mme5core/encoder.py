"""A backbone, a prompt style, a pooling and an adapter: contents in, unit vectors out."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from mme5core.ahead import ahead
from mme5core.backbones import Backbone, load_backbone
from mme5core.backbones.loading import load_config
from mme5core.backbones.protocol import Features, PictureInputs, base_model
from mme5core.errors import first_line
from mme5core.images import load_rgb
from mme5core.model_folder import (
    ENCODER_FILE,
    base_reference,
    check_model_files,
    config_width,
    find_base,
    has_adapter,
    model_identity,
    read_settings,
)
from mme5core.prepare import PreparedBatch, prepare_batches, size_of
from mme5core.prompt_styles import DEFAULT_STYLE, check_style, render
from mme5core.types import Content

MAX_TOKENS = 256
# Values in the pictures of one pass of the tower. A CPU is a tenth faster on what stays in its caches; an accelerator
# wants enough to do: here 16 pictures of Llama-3.2-Vision.
_TOWER_VALUES = {"cpu": 1 << 20, "accelerator": 1 << 26}
_ONE_AT_A_TIME = threading.Lock()  # the families stand in for parts of transformers, which all threads would find


class EmbeddingModel(nn.Module):
    """The base model as a module that gives unit vectors; what a training engine wraps."""

    def __init__(self, model: nn.Module, backbone: Backbone) -> None:
        super().__init__()
        self.model = model
        self.backbone = backbone

    def forward(self, batches: Sequence[PreparedBatch]) -> Tensor:
        """float32 [N, D], unit length: the batches' rows, one batch after the other."""
        vectors = []
        for batch in batches:
            if batch.seed is not None:
                torch.manual_seed(batch.seed)  # of every device
            vectors.append(self.embed_batch(batch))
        return torch.cat(vectors)

    def embed_batch(self, batch: PreparedBatch) -> Tensor:
        """float32 [B, D], unit length. The batch may lie in host memory: only the pass itself needs the device."""
        inputs, features = self.on_device(batch.inputs), batch.features
        if features is None and batch.pictures:
            made = [feature for part in self._tower_passes(batch.pictures) for feature in self.features(part)]
            features = [made[place] for place in batch.picture_of]
        if features is not None:
            device = next(self.parameters()).device
            moved: dict[int, Features] = {}  # rows may share a picture
            for feature in features:
                if id(feature) not in moved:
                    moved[id(feature)] = tuple(part.to(device, non_blocking=True) for part in feature)
            features = [moved[id(feature)] for feature in features]
        # float32: a unit vector rounded to bfloat16 has ties that the metrics would count as misses.
        return F.normalize(self.backbone.pooled(self.model, inputs, features).float(), dim=-1)

    def _tower_passes(self, pictures: Sequence[PictureInputs]) -> Iterator[list[PictureInputs]]:
        """The pictures in parts of what one pass of the tower takes: its activations weigh more than all the rest."""
        budget = _TOWER_VALUES["cpu" if next(self.parameters()).device.type == "cpu" else "accelerator"]
        part: list[PictureInputs] = []
        num_values = 0
        for picture in pictures:
            size = picture["pixel_values"].numel()
            if part and num_values + size > budget:
                yield part
                part, num_values = [], 0
            part.append(picture)
            num_values += size
        if part:
            yield part

    def features(self, pictures: Sequence[PictureInputs]) -> list[Features]:
        """What the vision tower makes of each picture, in one pass."""
        return self.backbone.features(self.model, [self.on_device(picture) for picture in pictures])

    def on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs on the model's device, pictures in the model's dtype."""
        parameter = next(self.parameters())
        moved = {name: value.to(parameter.device, non_blocking=True) for name, value in inputs.items()}
        return {
            name: value.to(parameter.dtype) if value.is_floating_point() else value
            for name, value in self.backbone.float_pixels(moved).items()
        }

    def train(self, mode: bool = True) -> EmbeddingModel:
        """As every module's; but a frozen tower stays as it is in use: its dropout would only blur its features."""
        super().train(mode)
        if mode and self.has_frozen_tower:
            for part in self._tower_modules():
                part.eval()
        return self

    @property
    def has_frozen_tower(self) -> bool:
        """Whether the tower can run apart, once per picture: it is known, and nothing in it trains."""
        parameters = self._tower_parameters()
        return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)

    @property
    def has_sharded_tower(self) -> bool:
        """Whether each process holds a part of the tower's weights only, as under DeepSpeed's ZeRO-3."""
        return any(hasattr(parameter, "ds_id") for parameter in self._tower_parameters())

    def _tower_parameters(self) -> list[nn.Parameter]:
        base, names = base_model(self.model), self.backbone.tower
        parts = [getattr(base, name) for name in names if hasattr(base, name)]
        return [p for part in parts for p in (part.parameters() if isinstance(part, nn.Module) else [part])]

    def _tower_modules(self) -> list[nn.Module]:
        base = base_model(self.model)
        parts = [getattr(base, name) for name in self.backbone.tower if hasattr(base, name)]
        return [part for part in parts if isinstance(part, nn.Module)]


def in_row_order(batches: Sequence[PreparedBatch], vector_ND: Tensor) -> Tensor:
    """The vectors of `EmbeddingModel.forward` in the order of the caller's rows, which the batches cover."""
    order = [row for batch in batches for row in batch.rows]
    back = torch.empty(len(order), dtype=torch.long, device=vector_ND.device)
    back[torch.tensor(order, device=vector_ND.device)] = torch.arange(len(order), device=vector_ND.device)
    return vector_ND[back]


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
    ) -> Encoder:
        """An encoder from a checkpoint folder, a `train` model folder, an adapter folder or a hub id.

        Args:
            adapter: a LoRA adapter folder to put on the checkpoint.
            prompt_style: None takes the one stored with the model, else "mme5" ("plain" for dual encoders).
            device: "auto" is the first accelerator, else the CPU.
            dtype: "auto" is the checkpoint's own; else a torch name such as "bfloat16".
            merge_adapter: fold the adapter into the weights (faster); False keeps it apart, for training.
            attention: transformers' `attn_implementation`; None: the library's choice.
            remote_code: run code that comes with the checkpoint. It can do anything that you can.
            quantize: "nf4" holds the weights in 4 bits, as QLoRA does; needs a GPU and bitsandbytes.

        Raises:
            ValueError: no model there, no tokenizer or image processor beside it, an unknown family, dtype or
                style, or a base that is not the one the adapter was trained on.
        """
        check_model_files(path)
        base = find_base(path)
        if adapter is None and has_adapter(path):
            adapter = path
        settings = read_settings(path if adapter is None else adapter)
        if settings.get("base_identity") not in (None, model_identity(base)):
            raise ValueError(f"the adapter at {str(adapter)!r} was trained on another base than {base!r}")
        torch_dtype = _torch_dtype(dtype)
        config = load_config(base, remote_code=remote_code)
        backbone = load_backbone(base, config, remote_code=remote_code)
        model = _load_model(base, torch_dtype, attention, remote_code, quantize)
        if adapter is not None:
            model = _with_adapter(model, Path(adapter), merge=merge_adapter)
        encoder = cls(
            model,
            backbone,
            prompt_style=prompt_style or settings.get("prompt_style", backbone.default_style),
            max_tokens=settings.get("max_tokens", MAX_TOKENS),
            base=base,
            merged_adapter=Path(adapter) if adapter is not None and merge_adapter else None,
        )
        if quantize is None:  # quantised weights are where they are
            encoder.module.to(default_device() if device == "auto" else torch.device(device))
        encoder.module.eval()
        return encoder

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
            batch_size: rows of one forward pass at most.

        Raises:
            ValueError: a picture that cannot be read (`images.BadImage`), naming its place in `contents`.
        """
        for place, content in enumerate(contents):
            if not isinstance(content, Content):
                raise TypeError(f"content {place}: Content(text=..., image=...) expected, not {type(content).__name__}")
        result = np.zeros((len(contents), self.dimension), dtype=np.float32)
        instructions = per_content(instruction, len(contents))
        for rows, vector_BD in self.stream(
            contents, instructions, batch_size=batch_size, max_batch_tokens=max_batch_tokens
        ):
            result[rows] = vector_BD
        return result

    def stream(
        self, contents: Sequence[Content], instructions: Sequence[str | None], **options: Any
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(places in `contents`, their vectors [B, D]) of each batch, while a thread prepares the next ones.

        Args:
            options: those of `prepare.prepare_batches`.
        """
        for batch in ahead(self.batches(contents, instructions, share_pictures=True, **options)):
            yield batch.rows, self.embed_batch(batch)

    def embed_batch(self, batch: PreparedBatch) -> np.ndarray:
        """float32 [B, D] of one prepared batch."""
        with _ONE_AT_A_TIME, torch.inference_mode():
            vector_BD: np.ndarray = self.module.embed_batch(batch).cpu().numpy()
        if not np.isfinite(vector_BD).all():
            raise ValueError("the model gave NaN or infinity; try dtype=float32")
        return vector_BD

    def batches(
        self, contents: Sequence[Content], instructions: Sequence[str | None], **options: Any
    ) -> Iterator[PreparedBatch]:
        """The forward passes for `contents`; `options` are those of `prepare.prepare_batches`."""
        prompts = self._prompts(contents, instructions)
        return prepare_batches(self.backbone, contents, prompts, max_tokens=self.max_tokens, **options)

    def token_ids(self, contents: Sequence[Content], instructions: Sequence[str | None]) -> list[list[int]]:
        """Token ids of each content's prompt, cut to `max_tokens`."""
        sizes = [size_of(self.backbone, content) for content in contents]
        return self.backbone.token_ids(self._prompts(contents, instructions), sizes, max_tokens=self.max_tokens)

    def prepare_picture(self, content: Content) -> PictureInputs:
        """The tensors of a content's picture."""
        return self.backbone.prepare_picture(load_rgb(content.image))

    def _prompts(self, contents: Sequence[Content], instructions: Sequence[str | None]) -> list[str]:
        return [
            render(content, instruction, style=self.prompt_style, image_prefix=self.backbone.image_prefix)
            for content, instruction in zip(contents, instructions, strict=True)
        ]

    def checkpoint_activations(self) -> None:
        """In training, keep each layer's input only and compute the rest again in the backward pass."""
        model: Any = self.module.model
        # renamed in transformers 5.23
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and name.endswith(("layers", "blocks")):
                for layer in module:
                    # mllama's tower takes no notice of the switch.
                    if not isinstance(layer, GradientCheckpointingLayer):
                        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def save(self, folder: str | os.PathLike[str], *, include_base: bool = False) -> None:
        """Write the adapter, prompt style and pooling; the base by reference, or whole with `include_base`.

        An adapter that `load` folded into the weights is copied from where it came.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            "format": 1,
            "prompt_style": self.prompt_style,
            "pooling": self.backbone.pooling,
            "normalize": True,
            "max_tokens": self.max_tokens,
            "dimension": self.dimension,
        }
        model: Any = self.module.model
        is_adapted = hasattr(model, "peft_config")
        if include_base:
            (model.merge_and_unload() if is_adapted else model).save_pretrained(folder)
            self.backbone.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
            self.backbone.image_processor.save_pretrained(folder)  # type: ignore[attr-defined]
            if hasattr(self.backbone, "processor"):
                self.backbone.processor.save_pretrained(folder)
        else:
            if is_adapted:
                model.save_pretrained(folder)
                (folder / "README.md").unlink(missing_ok=True)  # peft's form, with nothing filled in
            elif self._merged_adapter is not None:
                for name in ("adapter_config.json", "adapter_model.safetensors"):
                    shutil.copy(self._merged_adapter / name, folder / name)
            settings |= base_reference(self.base, folder)
        (folder / ENCODER_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def per_content(instruction: str | Sequence[str | None] | None, count: int) -> list[str | None]:
    """One instruction per content."""
    if instruction is None or isinstance(instruction, str):
        return [instruction] * count
    if len(instruction) != count:
        raise ValueError(f"{len(instruction)} instructions for {count} contents")
    return list(instruction)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _torch_dtype(dtype: str) -> torch.dtype | str:
    if dtype == "auto":
        return "auto"
    value = getattr(torch, dtype, None)
    if not isinstance(value, torch.dtype):
        raise ValueError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return value


def _load_model(
    base: str, dtype: torch.dtype | str, attention: str | None, remote_code: bool, quantize: str | None
) -> Any:
    kwargs = {"dtype": dtype, "attn_implementation": attention, "trust_remote_code": remote_code}
    if quantize is not None:
        kwargs |= _quantised(quantize)
    try:
        return AutoModel.from_pretrained(base, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the model at {base!r}: {first_line(error)}") from None


def _quantised(quantize: str) -> dict[str, Any]:
    """As QLoRA (arXiv 2305.14314): NormalFloat of 4 bits, its constants quantised too, products in bfloat16."""
    if quantize != "nf4":
        raise ValueError(f"unknown quantize {quantize!r}; known: nf4")
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("quantize=nf4 needs a GPU and the package bitsandbytes: pip install bitsandbytes")
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "device_map": {"": torch.cuda.current_device()},
    }


def _with_adapter(model: Any, adapter: Path, *, merge: bool) -> Any:
    from mme5core.adapters import load_adapter

    return load_adapter(model, adapter, merge=merge)
