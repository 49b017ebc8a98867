"""The weights that train: an adapter on chosen layers of a base model, or weights of the base itself."""

from mme5core.adapters.adapter import MME5, add_adapter, resolve_targets, token_embeddings, train_weights
from mme5core.adapters.dora import magnitudes_as_published, weights_at_rest
from mme5core.adapters.loading import check_adapter_file, load_adapter

__all__ = [
    "MME5",
    "add_adapter",
    "check_adapter_file",
    "load_adapter",
    "magnitudes_as_published",
    "resolve_targets",
    "token_embeddings",
    "train_weights",
    "weights_at_rest",
]
