"""The job `train`: an embedding model from samples."""
