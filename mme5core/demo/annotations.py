"""Emoji with Unicode's groups, and their names and keywords in the languages of CLDR."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

from mme5core.languages import LANGUAGES

CLDR_FOLDERS = (Path("/usr/share/unicode/cldr/common"), Path("/usr/local/share/unicode/cldr/common"))
EMOJI_TEST_FILES = (
    Path("/usr/share/unicode/emoji/emoji-test.txt"),
    Path("/usr/local/share/unicode/emoji/emoji-test.txt"),
)
FONT_FILES = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf"),
)
CLDR_CODES = {"tl": "fil"}  # where the code differs from mmE5's

_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
SHOWN_TONE = "\U0001f3fe"  # medium-dark: the only tone variant of an emoji in the corpus
_TEST_LINE = re.compile(r"^([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\S+ (.+)$")


class MissingData(RuntimeError):
    """Font or annotations are not installed; the message names the package."""


@dataclass(frozen=True, slots=True)
class Emoji:
    """One emoji with its names and keywords by language code."""

    characters: str
    group: str
    subgroup: str
    english_name: str
    names: dict[str, str] = field(default_factory=dict)
    keywords: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return "-".join(f"{ord(character):04x}" for character in self.characters)

    @property
    def base(self) -> str:
        """The characters without skin tone, gender sign and presentation, which are the same for all variants."""
        dropped = _TONES | {"\ufe0f", "\u200d", "\u2640", "\u2642"}
        person = {"\U0001f468": "\U0001f9d1", "\U0001f469": "\U0001f9d1"}
        return "".join(person.get(c, c) for c in self.characters if c not in dropped)

    @property
    def without_tone(self) -> str:
        return "".join(character for character in self.characters if character not in _TONES | {"\ufe0f"})

    @property
    def has_tone(self) -> bool:
        return any(character in _TONES for character in self.characters)


def find_font() -> Path:
    return _first_that_exists(FONT_FILES, "the colour emoji font", "fonts-noto-color-emoji")


def load_emoji() -> list[Emoji]:
    """All emoji without skin tone, and one toned variant of each that has tones, in Unicode's order.

    Raises:
        MissingData: a file is not installed.
    """
    test_file = _first_that_exists(EMOJI_TEST_FILES, "Unicode's emoji list", "unicode-data")
    cldr = _first_that_exists(CLDR_FOLDERS, "the CLDR annotations", "unicode-cldr-core")
    shown = [emoji for emoji in _parse_test_file(test_file) if _is_shown(emoji.characters)]
    names, keywords = _load_cldr(cldr)
    result = []
    for emoji in shown:
        key = emoji.characters.replace("\ufe0f", "")
        result.append(
            Emoji(
                emoji.characters,
                emoji.group,
                emoji.subgroup,
                emoji.english_name,
                {"en": emoji.english_name} | {code: table[key] for code, table in names.items() if key in table},
                {code: table[key] for code, table in keywords.items() if key in table},
            )
        )
    return result


def _is_shown(characters: str) -> bool:
    tones = [character for character in characters if character in _TONES]
    # Couples with two tones would add twenty variants of one picture.
    return not tones or tones == [SHOWN_TONE]


def _parse_test_file(file: Path) -> list[Emoji]:
    group = subgroup = ""
    result = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := _TEST_LINE.match(line):
            characters = "".join(chr(int(code, 16)) for code in match[1].split())
            result.append(Emoji(characters, group, subgroup, match[2]))
    return result


def _load_cldr(cldr: Path) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, tuple[str, ...]]]]:
    names: dict[str, dict[str, str]] = {}
    keywords: dict[str, dict[str, tuple[str, ...]]] = {}
    for language in LANGUAGES:
        for folder in ("annotations", "annotationsDerived"):
            file = cldr / folder / f"{CLDR_CODES.get(language, language)}.xml"
            if not file.is_file():
                continue
            for annotation in ET.parse(file).iter("annotation"):
                text = (annotation.text or "").strip()
                # CLDR marks "same as the parent locale" with an arrow; such an entry has no name of its own.
                if not text or "↑" in text:
                    continue
                if annotation.get("type") == "tts":
                    names.setdefault(language, {})[annotation.attrib["cp"]] = text
                else:
                    words = tuple(word.strip() for word in text.split("|"))
                    keywords.setdefault(language, {})[annotation.attrib["cp"]] = words
    return names, keywords


def _first_that_exists(paths: tuple[Path, ...], what: str, package: str) -> Path:
    for path in paths:
        if path.exists():
            return path
    raise MissingData(
        f"{what} is not installed: on Debian or Ubuntu run 'apt-get install {package}', elsewhere install "
        f"it as {paths[0]}"
    )
