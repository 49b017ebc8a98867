"""The 93 languages of mmE5, their English names, and how often each is drawn.

The paper says only that high-resource languages are drawn more often, English by far the most often; the
weights are ours: English 40, the others 6, 3 or 1 by the amount of their text on the web.
"""

from __future__ import annotations

ENGLISH_WEIGHT, HIGH_WEIGHT, MIDDLE_WEIGHT, LOW_WEIGHT = 40.0, 6.0, 3.0, 1.0

LANGUAGES: dict[str, str] = {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "as": "Assamese", "az": "Azerbaijani",
    "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali", "br": "Breton", "bs": "Bosnian",
    "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German",
    "el": "Greek", "en": "English", "eo": "Esperanto", "es": "Spanish", "et": "Estonian",
    "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French", "fy": "Western Frisian",
    "ga": "Irish", "gd": "Scottish Gaelic", "gl": "Galician", "gu": "Gujarati", "ha": "Hausa",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian",
    "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "jv": "Javanese",
    "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ko": "Korean",
    "ku": "Kurdish", "ky": "Kyrgyz", "la": "Latin", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mg": "Malagasy", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian",
    "mr": "Marathi", "ms": "Malay", "my": "Burmese", "ne": "Nepali", "nl": "Dutch",
    "no": "Norwegian", "om": "Oromo", "or": "Odia", "pa": "Punjabi", "pl": "Polish",
    "ps": "Pashto", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sa": "Sanskrit",
    "sd": "Sindhi", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian", "so": "Somali",
    "sq": "Albanian", "sr": "Serbian", "su": "Sundanese", "sv": "Swedish", "sw": "Swahili",
    "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog", "tr": "Turkish",
    "ug": "Uyghur", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese",
    "xh": "Xhosa", "yi": "Yiddish", "zh": "Chinese",
}  # fmt: skip

RIGHT_TO_LEFT = frozenset(("ar", "fa", "he", "ps", "sd", "ug", "ur", "yi"))

XTD_LANGUAGES = ("it", "es", "ru", "zh", "pl", "tr", "ko")

_HIGH = frozenset(["ar", "de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "vi", "zh", "id"])
_MIDDLE = frozenset(
    [
        "bg",
        "bn",
        "ca",
        "cs",
        "da",
        "el",
        "et",
        "fa",
        "fi",
        "he",
        "hi",
        "hr",
        "hu",
        "lt",
        "lv",
        "ms",
        "no",
        "ro",
        "sk",
        "sl",
        "sr",
        "sv",
        "sw",
        "ta",
        "te",
        "th",
        "uk",
        "ur",
    ]
)


def language_weight(code: str) -> float:
    """Relative frequency with which a language is drawn.

    Raises:
        ValueError: the language is not one of `LANGUAGES`.

    >>> language_weight("en") > language_weight("it") > language_weight("th") > language_weight("yi")
    True
    """
    if code not in LANGUAGES:
        raise ValueError(f"unknown language {code!r}; known: {' '.join(LANGUAGES)}")
    if code == "en":
        return ENGLISH_WEIGHT
    if code in _HIGH:
        return HIGH_WEIGHT
    return MIDDLE_WEIGHT if code in _MIDDLE else LOW_WEIGHT


def language_name(code: str) -> str:
    """English name and code; an unknown code is returned unchanged.

    >>> language_name("it"), language_name("xx")
    ('Italian (it)', 'xx')
    """
    return f"{LANGUAGES[code]} ({code})" if code in LANGUAGES else code
