"""Emoji as Unicode describes them, from the packages of this machine."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mme5core.demo import annotations
from mme5core.demo.annotations import Emoji, MissingData, find_font, load_emoji
from mme5core.languages import LANGUAGES, XTD_LANGUAGES


def find(emoji: list[Emoji], characters: str) -> Emoji:
    (found,) = [item for item in emoji if item.characters == characters]
    return found


def test_most_languages_name_over_a_thousand_emoji(all_emoji: list[Emoji]) -> None:
    counts = {code: sum(code in emoji.names for emoji in all_emoji) for code in LANGUAGES}
    well_named = {code for code, count in counts.items() if count > 1000}
    assert len(well_named) >= 84
    assert {"en", *XTD_LANGUAGES} <= well_named


def test_names_and_keywords_are_those_of_cldr(all_emoji: list[Emoji]) -> None:
    cat = find(all_emoji, "\U0001f408")
    assert (cat.id, cat.group, cat.subgroup, cat.english_name) == ("1f408", "Animals & Nature", "animal-mammal", "cat")
    assert cat.names["en"] == "cat" and cat.names["it"] == "gatto" and cat.names["es"] == "gato"
    # CLDR names Tagalog as Filipino.
    filipino = ET.parse(Path("/usr/share/unicode/cldr/common/annotations/fil.xml"))
    (name,) = [a.text for a in filipino.iter("annotation") if a.get("cp") == "\U0001f408" and a.get("type") == "tts"]
    assert cat.names["tl"] == name
    assert "pet" in cat.keywords["en"] and not any("|" in word for word in cat.keywords["en"])


def test_no_name_is_empty_or_an_arrow_to_another_locale(all_emoji: list[Emoji]) -> None:
    names = [name for emoji in all_emoji for name in emoji.names.values()]
    assert len(names) > 100_000 and all(name.strip() and "↑" not in name for name in names)


def test_every_emoji_stands_once_and_knows_its_place(all_emoji: list[Emoji]) -> None:
    assert len({emoji.id for emoji in all_emoji}) == len(all_emoji) > 1850
    assert all(emoji.group and emoji.subgroup and emoji.names["en"] == emoji.english_name for emoji in all_emoji)


def test_of_the_skin_tones_one_is_shown(all_emoji: list[Emoji]) -> None:
    tones = {
        character for emoji in all_emoji for character in emoji.characters if "\U0001f3fb" <= character <= "\U0001f3ff"
    }
    toned = [emoji for emoji in all_emoji if emoji.has_tone]
    assert tones == {"\U0001f3fe"} and len(toned) > 200
    plain = {emoji.without_tone for emoji in all_emoji if not emoji.has_tone}
    assert {emoji.without_tone for emoji in toned} <= plain


def test_variants_have_a_base_in_common_and_others_do_not(all_emoji: list[Emoji]) -> None:
    runner, cat = find(all_emoji, "\U0001f3c3"), find(all_emoji, "\U0001f408")
    woman_running = find(all_emoji, "\U0001f3c3\u200d\u2640\ufe0f")
    toned = find(all_emoji, "\U0001f3c3\U0001f3fe")
    cook = {find(all_emoji, f"{person}\u200d\U0001f373").base for person in "\U0001f9d1\U0001f468\U0001f469"}
    assert runner.base == woman_running.base == toned.base != cat.base
    assert len(cook) == 1
    assert toned.without_tone == runner.without_tone != woman_running.without_tone


@pytest.mark.parametrize(
    ("constant", "package"), [("EMOJI_TEST_FILES", "unicode-data"), ("CLDR_FOLDERS", "unicode-cldr-core")]
)
def test_missing_annotations_name_the_package_to_install(
    constant: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, constant, (tmp_path / "gone",))
    with pytest.raises(MissingData, match=rf"apt-get install {package}\b"):
        load_emoji()


def test_a_missing_font_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "FONT_FILES", (tmp_path / "gone.ttf",))
    with pytest.raises(MissingData, match=r"apt-get install fonts-noto-color-emoji\b"):
        find_font()
    (tmp_path / "here.ttf").touch()
    monkeypatch.setattr(annotations, "FONT_FILES", (tmp_path / "gone.ttf", tmp_path / "here.ttf"))
    assert find_font() == tmp_path / "here.ttf"
