"""From images to multilingual multimodal embeddings: the library, without Ray.

`Content` is light; `Encoder` brings torch and transformers and is loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from mme5core.types import Content

if TYPE_CHECKING:
    from mme5core.encoder import Encoder

__all__ = ["Content", "Encoder"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Encoder":
        from mme5core.encoder import Encoder

        return Encoder
    raise AttributeError(f"module 'mme5core' has no attribute {name!r}")
