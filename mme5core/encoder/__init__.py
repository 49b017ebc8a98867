"""Contents to unit vectors: the model as a module, its inputs, loading and saving, and the encoder over them."""

from mme5core.encoder.encoder import Encoder
from mme5core.encoder.module import EmbeddingModel, in_row_order
from mme5core.encoder.prepare import PreparedBatch

__all__ = ["EmbeddingModel", "Encoder", "PreparedBatch", "in_row_order"]
