"""What of a base model trains: adapters, where they go, and the model's own weights."""

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
