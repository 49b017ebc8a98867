"""The encoder from contents to unit vectors: the model as a module, its inputs, loading and saving."""

from mme5core.encoder.encoder import Encoder
from mme5core.encoder.module import EmbeddingModel, in_row_order

__all__ = ["EmbeddingModel", "Encoder", "in_row_order"]
