"""The base model as a torch module that computes unit vectors; a training engine wraps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mme5core.backbones import Backbone
from mme5core.backbones.protocol import Features, PictureInputs, base_model
from mme5core.encoder.prepare import PreparedBatch

# Most pixel values in one pass of the vision tower. A CPU is 10 % faster while they fit its caches; an accelerator
# needs a larger pass to be busy: 2^26 values are 16 pictures of Llama-3.2-Vision.
_MAX_TOWER_VALUES = {"cpu": 1 << 20, "accelerator": 1 << 26}


class EmbeddingModel(nn.Module):
    """The base model as a module that computes unit vectors.

    Args:
        normalize: False: the states themselves, as answers are read from.
    """

    def __init__(self, model: nn.Module, backbone: Backbone, *, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize
        self.model = model
        self.backbone = backbone

    def forward(self, batches: Sequence[PreparedBatch]) -> Tensor:
        """The vectors of the batches' rows, one batch after the other: float32 [N, D], unit length."""
        vectors = []
        for batch in batches:
            if batch.seed is not None:
                torch.manual_seed(batch.seed)  # seeds every device
            vectors.append(self.embed_batch(batch))
        return torch.cat(vectors)

    def embed_batch(self, batch: PreparedBatch) -> Tensor:
        """The vectors of one batch, which may lie in host memory: float32 [B, D], unit length."""
        # float32: a unit vector rounded to bfloat16 has ties that the metrics would count as misses.
        states = self.states(batch).float()
        return F.normalize(states, dim=-1) if self.normalize else states

    def states(self, batch: PreparedBatch) -> Tensor:
        """The pooled states of one batch, [B, D] in the model's dtype: vectors before they get unit length."""
        inputs, features = self.on_device(batch.inputs), batch.features
        if features is None and batch.pictures:
            features = self.features_of(batch)
        if features is not None:
            device = next(self.parameters()).device
            moved: dict[int, Features] = {}  # rows may share a picture
            for feature in (feature for of_row in features for feature in of_row):
                if id(feature) not in moved:
                    moved[id(feature)] = tuple(part.to(device, non_blocking=True) for part in feature)
            features = [[moved[id(feature)] for feature in of_row] for of_row in features]
        return self.backbone.pooled(self.model, inputs, features)

    def features_of(self, batch: PreparedBatch) -> list[list[Features]]:
        """The tower's output for each row's pictures; the tower runs once for each distinct one."""
        distinct = [feature for part in self._tower_passes(batch.pictures) for feature in self.features(part)]
        return [[distinct[place] for place in of_row] for of_row in batch.pictures_of]

    def _tower_passes(self, pictures: Sequence[PictureInputs]) -> Iterator[list[PictureInputs]]:
        """The pictures in parts, one for each pass of the tower: its activations take more memory than all the rest."""
        budget = _MAX_TOWER_VALUES["cpu" if next(self.parameters()).device.type == "cpu" else "accelerator"]
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
        """The vision tower's output for each picture, computed in one pass."""
        return self.backbone.features(self.model, [self.on_device(picture) for picture in pictures])

    def on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs on the model's device, pictures in the model's dtype."""
        parameter = next(self.parameters())
        moved = {name: tensor.to(parameter.device, non_blocking=True) for name, tensor in inputs.items()}
        return {
            name: tensor.to(parameter.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in self.backbone.float_pixels(moved).items()
        }

    def train(self, mode: bool = True) -> EmbeddingModel:
        """`nn.Module.train`, but a frozen tower stays in evaluation mode: dropout would only add noise."""
        super().train(mode)
        if mode and self.has_frozen_tower:
            for part in self._tower_modules():
                part.eval()
        return self

    @property
    def has_frozen_tower(self) -> bool:
        """Whether the tower can run separately, once per picture: it is known, and none of its weights train."""
        parameters = self._tower_parameters()
        return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)

    @property
    def has_sharded_tower(self) -> bool:
        """Whether each process holds only a part of the tower's weights, as under DeepSpeed's ZeRO-3."""
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
    """The vectors of `EmbeddingModel.forward` in the order of the caller's rows; the batches cover all of them."""
    order = [row for batch in batches for row in batch.rows]
    back = torch.empty(len(order), dtype=torch.long, device=vector_ND.device)
    back[torch.tensor(order, device=vector_ND.device)] = torch.arange(len(order), device=vector_ND.device)
    return vector_ND[back]
