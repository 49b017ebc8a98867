"""DoRA (arXiv 2402.09353) in training: the same numbers as peft, without recomputing row lengths in every pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn


class StepDora(DoraLinearVariant):
    """Turns a base layer's output W x + b into m / |W + s B A| (W d + s B A d) + b + (W x - W d), for d = dropout(x),
    as peft does.

    The row lengths |W + s B A| have no gradient (section 4.3 of the paper), so that they can be kept for as long as
    the weights do not change.

    Args:
        whole_input: apply dropout to the input of base and adapter, as peft does, at the cost of a second product with
            the base weight; else to the adapter's input only, as LoRA does, which is a different regularisation.

    A row of length 0 has no direction, and the formula would divide by 0. Such a row is held at the length 1 until it
    is loaded again, so that it learns as with LoRA.
    """

    def __init__(self, *, whole_input: bool) -> None:
        self._whole_input = whole_input
        self._kept: Tensor | None = None
        self._keep = False
        self._held: Tensor | None = None

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        dropout, base_layer = module.lora_dropout[active_adapter], module.get_base_layer()
        lora_A, lora_B = module.lora_A[active_adapter], module.lora_B[active_adapter]
        has_dropout = module.training and not isinstance(dropout, nn.Identity)
        dropped = dropout(x) if has_dropout else x
        base = base_layer(dropped.to(result.dtype)) if has_dropout and self._whole_input else result
        low_rank = lora_B(lora_A(dropped))
        scale = module.lora_magnitude_vector[active_adapter].weight / self.row_lengths(module, active_adapter)
        less_one = scale - 1
        if base_layer.bias is not None:
            result = result - less_one * base_layer.bias
        # Not addcmul: under autocast on CUDA it keeps float32 copies of its factors for the backward pass.
        return result + base * less_one + low_rank * (scale * module.scaling[active_adapter])

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Within it, the row lengths are computed once and kept."""
        self._keep = True
        try:
            yield
        finally:
            self._keep, self._kept = False, None

    def hold_zero_rows(self, module: Any, adapter: str) -> None:
        """Hold the rows whose length is 0 now; their magnitude becomes 1."""
        is_zero = self._lengths(module, adapter) == 0
        if is_zero.any():
            self._held = is_zero
            magnitude: Any = module.lora_magnitude_vector[adapter].weight
            magnitude.data[is_zero] = 1.0

    @contextmanager
    def as_published(self, module: Any, adapter: str) -> Iterator[None]:
        """Within it the magnitudes of held rows are those of the formula that divides by the true length."""
        if self._held is None:
            yield
            return
        magnitude: Any = module.lora_magnitude_vector[adapter].weight
        own = magnitude.data.clone()
        # The base's part of these rows is 0; under ZeRO-3 it may lie on other processes.
        low_rank = module.lora_B[adapter].weight.data.float() @ module.lora_A[adapter].weight.data.float()
        held = self._held.to(own.device)
        magnitude.data[held] *= torch.linalg.norm(module.scaling[adapter] * low_rank[held], dim=1)
        try:
            yield
        finally:
            magnitude.data.copy_(own)

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        if self._held is None:
            return super().merge_safe(module, active_adapter, orig_weight)
        lengths = self.row_lengths(module, active_adapter)
        scale = module.lora_magnitude_vector[active_adapter].weight / lengths
        merged = scale[:, None] * (orig_weight + module.get_delta_weight(active_adapter))
        return merged.detach().to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:  # type: ignore[override]
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    def row_lengths(self, module: Any, adapter: str) -> Tensor:
        """|W + s B A| of each row, and 1 for a row that is held, float32 [outputs]."""
        if self._kept is not None:
            return self._kept
        lengths = self._lengths(module, adapter)
        if self._held is not None:
            lengths = lengths.masked_fill(self._held.to(lengths.device), 1.0)
        if self._keep:
            self._kept = lengths
        return lengths

    def _lengths(self, module: Any, adapter: str) -> Tensor:
        with torch.no_grad(), torch.autocast(module.lora_A[adapter].weight.device.type, enabled=False):
            weight = dequantize_module_weight(module.get_base_layer())
            low_rank = module.lora_B[adapter].weight.float() @ module.lora_A[adapter].weight.float()
            return torch.linalg.norm(weight.to(low_rank.dtype) + module.scaling[adapter] * low_rank, dim=1)


def use_step_dora(model: nn.Module, *, whole_input: bool, is_fresh: bool) -> None:
    """Compute the DoRA layers of a peft model by `StepDora`.

    Args:
        is_fresh: initialise the magnitudes, in float32. peft does so in the base's dtype: in bfloat16, a fresh adapter
            would change the outputs by up to 0.4 %.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter, variant in module.lora_variant.items():
                if type(variant) is DoraLinearVariant:
                    dora = module.lora_variant[adapter] = StepDora(whole_input=whole_input)
                    magnitude: Any = module.lora_magnitude_vector[adapter]
                    if is_fresh:
                        magnitude.weight.data = dora.row_lengths(module, adapter)
                    dora.hold_zero_rows(module, adapter)


@contextmanager
def weights_at_rest(model: nn.Module) -> Iterator[None]:
    """Within it no weight may change: DoRA layers compute the lengths of their rows only once."""
    with ExitStack() as stack:
        for dora, _, _ in _step_doras(model):
            stack.enter_context(dora.keeping())
        yield


@contextmanager
def magnitudes_as_published(model: nn.Module) -> Iterator[None]:
    """Within it an adapter can be saved: other readers of it know of no rows that are held at length 1."""
    with ExitStack() as stack:
        for dora, module, adapter in _step_doras(model):
            stack.enter_context(dora.as_published(module, adapter))
        yield


def _step_doras(model: nn.Module) -> Iterator[tuple[StepDora, Any, str]]:
    """Each DoRA layer's variant, its module, and the adapter's name."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter, variant in module.lora_variant.items():
                if isinstance(variant, StepDora):
                    yield variant, module, adapter
