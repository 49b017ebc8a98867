"""Training samples on disk: one module for each format, chosen by a table."""

from mme5core.sample_readers.reading import FORMATS, count_samples, read_samples

__all__ = ["FORMATS", "count_samples", "read_samples"]
