"""The weights that train: an adapter on chosen layers of a base model, or weights of the base itself."""

from mme5core.adapters.adapter import (
    MME5,
    add_adapter,
    check_adapter_file,
    load_adapter,
    resolve_targets,
    train_weights,
)
from mme5core.adapters.dora import weights_at_rest

__all__ = [
    "MME5",
    "add_adapter",
    "check_adapter_file",
    "load_adapter",
    "resolve_targets",
    "train_weights",
    "weights_at_rest",
]
