"""Checks of a generated text: the wrong language, a refusal, a label that was copied into it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

# Languages by script, as named in Unicode's character names; those that are not listed use Latin letters.
_SCRIPTS = {
    "ARABIC": "ar fa ku ps sd ug ur",
    "ARMENIAN": "hy",
    "BENGALI": "as bn",
    "CJK": "ja ko zh",
    "CYRILLIC": "az be bg bs kk ku ky mk mn ru sr tg uk uz",
    "DEVANAGARI": "hi mr ne sa",
    "ETHIOPIC": "am om",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he yi",
    "HIRAGANA": "ja",
    "KANNADA": "kn",
    "KATAKANA": "ja",
    "KHMER": "km",
    "LAO": "lo",
    "LATIN": "az bs ku om sr ug uz",  # those that also use another script
    "MALAYALAM": "ml",
    "MONGOLIAN": "mn",
    "MYANMAR": "my",
    "ORIYA": "or",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
_OWN_SCRIPTS: dict[str, set[str]] = {}
for _script, _codes in _SCRIPTS.items():
    for _code in _codes.split():
        _OWN_SCRIPTS.setdefault(_code, set()).add(_script)

# Labels that the identifier may confuse: other names of the same language, or languages too similar to distinguish.
_NEAR = ("bs hr sr", "no nn da", "id ms jv su", "zh yue wuu", "ar ary arz", "ku sdh", "uz uzs", "sd ps ur", "yi he")

# Measured on the names of emoji in 84 languages, three joined in a text: at this confidence, 4 of 25,200 texts were
# mistaken for another language. English is detected in 25 % of texts of four names and in 70 % of texts of eight.
MIN_CONFIDENCE = 0.8
MIN_LETTERS = 12
MIN_SHARE_OF_SCRIPT = 0.5

_REFUSAL = re.compile(
    r"^\W*((i'?m|i am) (really |so |very )?sorry\b|sorry,|(i'?m|i am) (unable|not able)\b"
    r"|i (can'?t|cannot|must decline)\b|as an ai\b|(unfortunately|apologies),? (but )?i\b|i apologi[sz]e)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^\W{0,3}(query|question|instruction|(hard )?negatives?( \d+)?|positive|answer|label|misleading label|document|"
    r"caption|revised \w+|draft)\s*[:：]\s*\S",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether an answer begins like a refusal.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal('{"images": []}')
    (True, False)
    """
    return bool(_REFUSAL.match(text.replace("’", "'")))


def leaked_label(text: str) -> str | None:
    """The label, such as "Positive", that a text begins with; None if it does not.

    >>> leaked_label("Positive: a cat"), leaked_label("a positive: cat")
    ('Positive', None)
    """
    match = _LABEL.match(text)
    return match[1] if match else None


def wrong_language(texts: Sequence[str], language: str) -> str | None:
    """Why the texts together are not in the language; None if they are, or if it cannot be decided.

    Letters of another script than the language's decide it. Within a script, an identifier decides if it knows the
    language and is confident, which it rarely is for a few words.

    >>> wrong_language(["a cat on the sofa"], "ru")
    'letters of LATIN, not of CYRILLIC'
    >>> wrong_language(["рыжий кот на диване"], "ru")
    """
    text = " ".join(texts)
    letters = [_script_of(sign) for sign in text if sign.isalpha()]
    if len(letters) < MIN_LETTERS:
        return None
    own = _OWN_SCRIPTS.get(language, {"LATIN"})
    counts = Counter(letters)
    if sum(counts[script] for script in own) < MIN_SHARE_OF_SCRIPT * len(letters):
        return f"letters of {counts.most_common(1)[0][0]}, not of {' or '.join(sorted(own))}"
    classify, known = _identifier()
    if language not in known:
        return None
    identified, confidence = classify(text)
    if identified == language or confidence < MIN_CONFIDENCE or _are_near(identified, language):
        return None
    return f"reads as {identified!r} (confidence {confidence:.2f})"


@lru_cache(maxsize=4096)
def _script_of(sign: str) -> str:
    return unicodedata.name(sign, "UNNAMED").split()[0].split("-")[0]


def _are_near(one: str, other: str) -> bool:
    return any(one in group.split() and other in group.split() for group in _NEAR)


@lru_cache(maxsize=1)
def _identifier() -> tuple[Callable[[str], tuple[str, float]], frozenset[str]]:
    """(function from text to language and confidence, languages that it knows)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return identifier.classify, frozenset(identifier.labels)
