"""Scoring vectors on benchmarks, and showing the scores."""
