"""The answers that a list allows, as a tree of tokens: which of them each position must tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnswerTrie:
    """The tokens of some answers, none of which begins with another.

    Args:
        branches: by the tokens that lead to each position where answers differ, the tokens that may follow there.

    >>> trie = AnswerTrie.of([(5, 1, 9), (5, 2, 9), (5, 1, 0, 9)])
    >>> trie.branches
    {(5,): (1, 2), (5, 1): (0, 9)}
    >>> trie.choices((5, 1, 9))
    [((5,), 1), ((5, 1), 9)]
    """

    branches: dict[TokenIds, TokenIds]

    @classmethod
    def of(cls, answers: Sequence[TokenIds]) -> AnswerTrie:
        """
        Raises:
            ValueError: an answer begins with another, so that they cannot be told apart.
        """
        following: dict[TokenIds, set[int]] = {}
        for answer in answers:
            for place, token in enumerate(answer):
                following.setdefault(answer[:place], set()).add(token)
        for answer in answers:
            if answer in following or answers.count(answer) > 1:
                raise ValueError("the tokenizer begins two answers alike to the end of one: they cannot be told apart")
        branches = {prefix: tuple(sorted(tokens)) for prefix, tokens in following.items() if len(tokens) > 1}
        return cls(dict(sorted(branches.items(), key=lambda branch: (len(branch[0]), branch[0]))))

    def choices(self, answer: TokenIds) -> list[tuple[TokenIds, int]]:
        """Where an answer differs from others: the tokens before each such position, and its own token there."""
        return [(answer[:place], token) for place, token in enumerate(answer) if answer[:place] in self.branches]
