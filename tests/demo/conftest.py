"""Emoji as Unicode describes them, and a small corpus of them on disk, made once."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mme5core.demo.annotations import Emoji, find_font, load_emoji
from mme5core.demo.corpus import Corpus, Picture, write_corpus
from mme5core.demo.teacher import Entry, Knowledge
from mme5core.images import load_rgb
from mme5core.readers import read_rows

# Flags and others that the font draws alike: one look, and so one sha256.
ALIKE = (("flag: Norway", "flag: Svalbard & Jan Mayen", "flag: Bouvet Island"), ("flag: France", "flag: St. Martin"))


@pytest.fixture(scope="session")
def all_emoji() -> list[Emoji]:
    return load_emoji()


@pytest.fixture(scope="session")
def all_pictures(all_emoji: list[Emoji]) -> list[Picture]:
    """The whole corpus without drawing it: the look of each is its own, but for those that look alike."""
    look = {name: names[0] for names in ALIKE for name in names}
    assert {emoji.english_name for emoji in all_emoji} >= set(look)
    return [
        Picture(f"{index:09d}", emoji, hashlib.sha256(look.get(emoji.english_name, emoji.id).encode()).hexdigest())
        for index, emoji in enumerate(all_emoji)
    ]


@pytest.fixture(scope="session")
def few_emoji(all_emoji: list[Emoji]) -> list[Emoji]:
    """30 emoji: 10 of each of three subgroups, without skin tones."""
    taken: Counter[str] = Counter()
    chosen = []
    for emoji in all_emoji:
        if emoji.subgroup in ("animal-mammal", "food-fruit", "country-flag") and not emoji.has_tone:
            taken[emoji.subgroup] += 1
            if taken[emoji.subgroup] <= 10:
                chosen.append(emoji)
    assert len(chosen) == 30
    return chosen


@pytest.fixture(scope="session")
def corpus_folder(few_emoji: list[Emoji], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    *_, _ = write_corpus(folder, few_emoji, find_font())
    return folder


@pytest.fixture(scope="session")
def corpus(few_emoji: list[Emoji], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    *_, last = write_corpus(tmp_path_factory.mktemp("again"), few_emoji, find_font())
    assert isinstance(last, Corpus)
    return last


@pytest.fixture(scope="session")
def data_by_key(corpus_folder: Path) -> dict[str, bytes]:
    """The encoded pictures of the small corpus."""
    rows = [row for shard in sorted(corpus_folder.glob("*.tar")) for row in read_rows(shard)]
    return {row.id: row.image for row in rows if row.image is not None}


@pytest.fixture(scope="session")
def knowledge(corpus: Corpus, data_by_key: dict[str, bytes]) -> Knowledge:
    entries: list[Entry] = []
    pictures: list[Image.Image] = []
    for picture in corpus.pictures:
        keywords = {code: list(words) for code, words in picture.emoji.keywords.items()}
        entries.append(Entry(picture.key, picture.emoji.subgroup, picture.emoji.names, keywords))
        pictures.append(load_rgb(data_by_key[picture.key]))
    return Knowledge(entries, pictures)
