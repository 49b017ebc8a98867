"""Asking an MLLM about records on the cluster: a step that several jobs share."""

from rayjobs.asking.ask import ask_all

__all__ = ["ask_all"]
