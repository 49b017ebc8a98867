"""Scores of vectors on benchmarks, and their reports."""
