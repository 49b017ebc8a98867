"""UniME-V2's judge: how well a candidate meets a query, and the hard negatives that follow."""

from typing import TYPE_CHECKING, Any

from mme5core.judge.selection import select_negatives

if TYPE_CHECKING:
    from mme5core.judge.local import Judge

__all__ = ["Judge", "select_negatives"]


def __getattr__(name: str) -> Any:
    if name == "Judge":  # brings torch and transformers
        from mme5core.judge.local import Judge

        return Judge
    raise AttributeError(f"module 'mme5core.judge' has no attribute {name!r}")
