"""Embedding the contents of a corpus on the cluster: a step that several jobs share."""

from rayjobs.embedding.actors import LoadEncoder
from rayjobs.embedding.embed import embed_contents, placement_for

__all__ = ["LoadEncoder", "embed_contents", "placement_for"]
