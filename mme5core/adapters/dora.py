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
    """

    def __init__(self, *, whole_input: bool) -> None:
        self._whole_input = whole_input
        self._kept: Tensor | None = None
        self._keep = False

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

    def row_lengths(self, module: Any, adapter: str) -> Tensor:
        """|W + s B A| of each row, float32 [outputs]."""
        if self._kept is not None:
            return self._kept
        with torch.no_grad(), torch.autocast(module.lora_A[adapter].weight.device.type, enabled=False):
            weight = dequantize_module_weight(module.get_base_layer())
            low_rank = module.lora_B[adapter].weight.float() @ module.lora_A[adapter].weight.float()
            lengths = torch.linalg.norm(weight.to(low_rank.dtype) + module.scaling[adapter] * low_rank, dim=1)
        if self._keep:
            self._kept = lengths
        return lengths


def use_step_dora(model: nn.Module, *, whole_input: bool) -> None:
    """Compute the DoRA layers of a peft model by `StepDora`, with initial magnitudes in float32.

    peft initialises them in the base's dtype: in bfloat16, a fresh adapter would change the outputs by up to 0.4 %.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter, variant in module.lora_variant.items():
                if type(variant) is DoraLinearVariant:
                    dora = module.lora_variant[adapter] = StepDora(whole_input=whole_input)
                    magnitude: Any = module.lora_magnitude_vector[adapter]
                    magnitude.weight.data = dora.row_lengths(module, adapter)


@contextmanager
def weights_at_rest(model: nn.Module) -> Iterator[None]:
    """Within it no weight may change: DoRA layers compute the lengths of their rows only once."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, LoraLayer):
                for variant in module.lora_variant.values():
                    if isinstance(variant, StepDora):
                        stack.enter_context(variant.keeping())
        yield
