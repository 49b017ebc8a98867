"""Asking an MLLM about records on the cluster: a step that several jobs share."""

from rayjobs.asking.ask import ask_all
from rayjobs.asking.shared_cache import keep_in_shared_cache, make_shared_cache
from rayjobs.asking.spending import budget_line, costs

__all__ = ["ask_all", "budget_line", "costs", "keep_in_shared_cache", "make_shared_cache"]
