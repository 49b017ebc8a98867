"""Whether a server seems to drop pictures or text: it counts far fewer tokens than a request has."""

from __future__ import annotations

from dataclasses import dataclass

FEWEST_ANSWERS, MOST_ANSWERS = 3, 100
LEAST_SHARE = 0.5
"""Below this share of the estimate something is probably missing. English text and OpenAI's pictures have 0.7 to 1."""


@dataclass(slots=True)
class TokenWatch:
    """Counts the prompt tokens of the first answers against the estimate, and says once if they are too few."""

    role: str
    _num_answers: int = 0
    _counted: int = 0
    _estimated: int = 0
    _is_over: bool = False

    @property
    def is_over(self) -> bool:
        return self._is_over

    def note(self, counted: int, estimated: int) -> str:
        """Take one answer; returns what to say, or an empty text."""
        if self._is_over or not counted:
            return ""
        self._num_answers += 1
        self._counted, self._estimated = self._counted + counted, self._estimated + estimated
        is_low = self._counted < LEAST_SHARE * self._estimated
        self._is_over = self._num_answers >= (FEWEST_ANSWERS if is_low else MOST_ANSWERS)
        if not is_low or self._num_answers < FEWEST_ANSWERS:
            return ""
        mean, expected = (round(total / self._num_answers) for total in (self._counted, self._estimated))
        return (
            f"the {self.role} counts {mean:,} prompt tokens a call where about {expected:,} were expected: it may drop "
            "the pictures or a part of the text; look at what it writes of the pictures before you pay for more"
        )
