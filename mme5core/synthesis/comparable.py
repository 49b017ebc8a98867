"""Texts without what does not tell two of them apart: width, case, space, and the punctuation of a sentence."""

from __future__ import annotations

import re
import unicodedata

# Letters' marks stay, which Python's \\w leaves out: in Hindi or Thai they are vowels. So do signs that mean something
# (C# and C++, 5 % and 5), the point of a number, and the minus before one.
_STAYS = frozenset("#%‰&@*/\\†‡§¶")
_IN_A_NUMBER = re.compile(r"(?<=\d)[.,:/·](?=\d)|(?<![^\W_])[-−](?=\d)")
_APOSTROPHES = frozenset("'’ʼ`´")


def comparable(text: str) -> str:
    """The text after NFKC, case folding, and without punctuation; itself where nothing else would be left.

    >>> comparable("The  CAT."), comparable("ＣＡＴ！"), comparable("C++"), comparable("-1"), comparable("...")
    ('the cat', 'cat', 'c++', '-1', '...')
    >>> comparable("3.5 m") == comparable("35 m"), comparable("कि") == comparable("की")
    (False, False)
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = {match.start() for match in _IN_A_NUMBER.finditer(folded)}
    signs = (
        sign if place in kept or not _is_punctuation(sign) else "" if sign in _APOSTROPHES else " "
        for place, sign in enumerate(folded)
    )
    return " ".join("".join(signs).split()) or " ".join(folded.split())


def _is_punctuation(sign: str) -> bool:
    if sign in _APOSTROPHES:
        return True
    category = unicodedata.category(sign)
    return sign not in _STAYS and (category.startswith("P") or category == "Cf")
