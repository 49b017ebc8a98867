"""The form in which a server answers: sought from the strictest to plain words, believed once it was shown."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from mme5core.asking.answer import Answer
from mme5core.asking.failures import ServerUnavailable
from mme5core.asking.finish_reasons import ending_of
from mme5core.asking.json_in_text import holds_json
from mme5core.asking.request import MAX_COMPLETION_TOKENS, MAX_TOKENS, SCHEMA

# After so many answers that show no form, calls are no longer made one by one: the fault is elsewhere.
MOST_UNSHOWN = 8
_OF_THE_FORM = re.compile(r"response_?format|json_?schema|json_?object|schema|grammar|structured|guided", re.IGNORECASE)
# A gateway may wrap these words, and drop the names of the parameter and of the error.
_OTHER_LIMIT = re.compile(
    rf"\buse\W+(the\W+)?(parameter\W+)?{MAX_COMPLETION_TOKENS}|{MAX_TOKENS}\W+(is|are)\W+(not|un)\W*(supported|compatible)"
    rf"|unsupported\W+(parameter|field|argument)\W+{MAX_TOKENS}|(deprecated|instead).{{0,60}}{MAX_COMPLETION_TOKENS}",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(slots=True)
class AnswerForm:
    """What is known of a server's form of answer, and its name of the limit of tokens.

    Args:
        name: in which requests are made now.
        limit: the server's name for the limit of an answer's tokens.
        is_shown: an answer has shown the form.
        is_fixed: the user has set it.
        num_unshown: answers that have shown no form, each the last of its record.
        have_all_failed: a server has failed on every form, so that its failures say nothing of one.
    """

    name: str = SCHEMA
    limit: str = MAX_TOKENS
    is_shown: bool = False
    is_fixed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_unshown: int = 0
    have_all_failed: bool = False

    @property
    def is_sought(self) -> bool:
        """Whether requests go one by one still, because it is not known in which form the server answers."""
        return not (self.is_shown or self.is_fixed) and self.num_unshown < MOST_UNSHOWN

    def notice(self, answer: Answer) -> None:
        """An answer with an object in it shows its form."""
        if not self.is_shown and holds_json(answer.text):
            self.name, self.is_shown = answer.form, True

    def is_ignored_by(self, answer: Answer) -> bool:
        """Whether a whole answer is no JSON, so that the next form is worth a try."""
        return ending_of(answer.finish_reason) == "complete" and bool(answer.text.strip())

    def may_be_refused_by(self, error: ServerUnavailable) -> bool:
        """Whether a failure that persists (5xx) may be a refusal of the form: until all forms have failed once."""
        if error.status is None or error.status < 500:
            return False
        return not self.have_all_failed or bool(_OF_THE_FORM.search(error.words))

    def read_rejection(self, words: str, *, is_of_the_limit: bool) -> None:
        """Learn the limit's other name from a rejection: OpenAI says so of its reasoning models.

        Args:
            is_of_the_limit: the body names the parameter or calls it unsupported.
        """
        if MAX_COMPLETION_TOKENS in words and (is_of_the_limit or _OTHER_LIMIT.search(words)):
            self.limit = MAX_COMPLETION_TOKENS
