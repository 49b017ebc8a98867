"""The demo teacher as a judge: it knows what every picture is called, so that its scores are an upper bound."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mme5core.judge.prompt import CANDIDATE, NO, QUERY, YES
from mme5core.synthesis.comparable import comparable

MEANT, ALIKE, OTHER = 0.98, 0.6, 0.02
"""p(Yes) of a picture that the query names, of one that shares a keyword with it, and of all others."""


def logprobs_of(asked: str, names: Mapping[str, str], keywords: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The field `logprobs` of an answer about a query's text and what a candidate's picture is called, by language."""
    share = _share(asked, names, keywords)
    top = [{"token": YES, "logprob": math.log(share)}, {"token": NO, "logprob": math.log(1 - share)}]
    return {"content": [{"token": YES, "logprob": top[0]["logprob"], "top_logprobs": top}]}


def query_of(prompt: str) -> str:
    """What stands for the query in a judge's prompt.

    Raises:
        ValueError: it is no such prompt.
    """
    _, begins, rest = prompt.partition(QUERY)
    asked, ends, _ = rest.partition(CANDIDATE)
    if not begins or not ends:
        raise ValueError("no query and candidate to judge")
    return asked


def _share(asked: str, names: Mapping[str, str], keywords: Mapping[str, Sequence[str]]) -> float:
    text = comparable(asked)
    if any(_ends_with(text, [name]) for name in names.values()):
        return MEANT
    for words in keywords.values():
        named = [word for word in words if comparable(word) and comparable(word) in text]
        if len(named) > 1:
            return MEANT  # queries of two keywords
        if named:
            return ALIKE
    return OTHER


def _ends_with(text: str, names: Sequence[str]) -> bool:
    """Whether the text, whose beginning is an instruction, ends with a name."""
    return any(folded and text.endswith(folded) for folded in map(comparable, names))
