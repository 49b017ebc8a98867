"""Checks of generated texts: the wrong language, a refusal, a label that was copied into one."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from mme5core.synthesis.labels import leaked_label
from mme5core.synthesis.text_defects import is_refusal

__all__ = ["is_refusal", "leaked_label", "wrong_language", "wrong_language_of_one"]

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
_NEAR = (
    "bs hr sr",
    "no nn da",
    "id ms jv su",
    "zh yue wuu",
    "tl bcl",
    "ar ary arz",
    "ku sdh",
    "uz uzs",
    "sd ps ur",
    "yi he",
)

# Measured on the names of emoji in 84 languages, joined to texts of at least 40 letters: at this confidence none of
# 25,500 texts was mistaken for another language, and each of five English sentences of 40 to 50 letters was noticed in
# place of each of the others.
MIN_CONFIDENCE = 0.85
MIN_LETTERS = 40
# Fewer tell where they are of a script that is neither Latin, as names of brands are everywhere, nor the language's.
MIN_LETTERS_OF_ANOTHER_SCRIPT = 12
MIN_SHARE_OF_SCRIPT = 0.5


def wrong_language(texts: Sequence[str], language: str) -> str | None:
    """Why the texts together are not in the language; None if they are, or if it cannot be decided.

    Letters of another script than the language's decide it. Within a script, an identifier decides if it knows the
    language and is confident. Of fewer than 40 letters nobody can be sure, unless they are of an alien script.

    >>> wrong_language(["a photo of a small brown dog that lies on a red sofa"], "ru")
    'letters of LATIN, not of CYRILLIC'
    >>> wrong_language(["Starbucks Coffee"], "ru"), wrong_language(["рыжий кот на диване"], "ru")
    (None, None)
    >>> wrong_language(["рыжий кот на диване"], "it")
    'letters of CYRILLIC, not of LATIN'
    """
    text = " ".join(texts)
    letters = _letters(text)
    own = _OWN_SCRIPTS.get(language, {"LATIN"})
    counts = Counter(letters)
    if letters and sum(counts[script] for script in own) < MIN_SHARE_OF_SCRIPT * len(letters):
        most = counts.most_common(1)[0][0]
        if len(letters) >= (MIN_LETTERS if most == "LATIN" else MIN_LETTERS_OF_ANOTHER_SCRIPT):
            return f"letters of {most}, not of {' or '.join(sorted(own))}"
    classify, known = _identifier()
    if language not in known or len(letters) < MIN_LETTERS:
        return None
    identified, confidence = classify(text)
    if identified == language or confidence < MIN_CONFIDENCE or _are_near(identified, language):
        return None
    return f"reads as {identified!r} (confidence {confidence:.2f})"


def wrong_language_of_one(text: str, language: str) -> str | None:
    """As `wrong_language`, of one text beside others; None where it has too few letters to be judged by itself."""
    return wrong_language([text], language) if len(_letters(text)) >= MIN_LETTERS else None


def _letters(text: str) -> list[str]:
    """The script of each letter."""
    return [_script_of(sign) for sign in text if sign.isalpha()]


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
