"""Contrastive training: the loop, its batches, its objective, its engines and its checkpoints."""
