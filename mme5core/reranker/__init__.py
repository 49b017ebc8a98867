"""A reranker: how well each of a query's candidates meets it, by a model that reads both together."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mme5core.reranker.reranker import Reranker

__all__ = ["Reranker"]


def __getattr__(name: str) -> Any:
    if name == "Reranker":  # brings torch and transformers
        from mme5core.reranker.reranker import Reranker

        return Reranker
    raise AttributeError(f"module 'mme5core.reranker' has no attribute {name!r}")
