"""The prompts of judges and rerankers: a query, one candidate or several, and a question about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mme5core.types import Content

YES, NO = "Yes", "No"
QUESTION = f"Does the candidate meet what the query asks for? Answer {YES} or {NO}."
LIST_QUESTION = "Which candidate best meets what the query asks for? Answer with its number in parentheses."
QUERY, CANDIDATE, CANDIDATES = "Query:\n", "\n\nCandidate:\n", "\n\nCandidates:\n"


def parts_of(query: Content, candidate: Content, instruction: str | None) -> list[str | None]:
    r"""The prompt in parts: texts, and None in the place of each picture, those of the query first.

    What does not depend on the candidate comes first, so that the candidates of a query share it.

    >>> parts_of(Content("a cat", "a.jpg"), Content(image="b.jpg"), "Find a picture:")[:3]
    ['Query:\n', None, 'Find a picture: a cat\n\nCandidate:\n']
    """
    asked = " ".join(text for text in (instruction, query.text) if text)
    return _joined(
        [
            QUERY,
            *[None] * len(query.images),
            f"{asked}{CANDIDATE}",
            *[None] * len(candidate.images),
            f"{candidate.text or ''}\n\n{QUESTION}",
        ]
    )


def parts_of_list(query: Content, candidates: Sequence[Content], instruction: str | None) -> list[str | None]:
    r"""The prompt that asks for one of several candidates, in parts as `parts_of`.

    >>> parts_of_list(Content("a cat"), [Content(image="b.jpg"), Content("a dog")], None)[:2]
    ['Query:\na cat\n\nCandidates:\n(1) ', None]
    """
    asked = " ".join(text for text in (instruction, query.text) if text)
    parts = [QUERY, *[None] * len(query.images), f"{asked}{CANDIDATES}"]
    for number, candidate in enumerate(candidates, start=1):
        parts += [f"{label_of(number)} ", *[None] * len(candidate.images), f"{candidate.text or ''}\n"]
    return _joined([*parts, f"\n{LIST_QUESTION}"])


def label_of(number: int) -> str:
    """How a candidate of a list is named, in the prompt and as the answer.

    >>> label_of(3)
    '(3)'
    """
    return f"({number})"


def messages_of(parts: Sequence[str | None]) -> list[dict[str, Any]]:
    """The prompt as a chat of one message, as chat templates take it."""
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


def plain_text(parts: Sequence[str | None], image_prefix: str) -> str:
    """The prompt for a model without a chat template."""
    # A line of its own: after a space, some tokenizers begin every word with one token.
    return "".join(image_prefix if part is None else part for part in parts) + "\nAnswer:\n"


def _joined(parts: Sequence[str | None]) -> list[str | None]:
    """The parts, with texts that follow each other as one."""
    joined: list[str | None] = []
    for part in parts:
        if part is not None and joined and joined[-1] is not None:
            joined[-1] += part
        else:
            joined.append(part)
    return joined
