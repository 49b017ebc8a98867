"""The demo's benchmark: held-out pairs of picture and language, queries on them, and neighbours of pictures."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any, Literal

from mme5core.demo.corpus import Picture
from mme5core.demo.instructions import QUERY_INSTRUCTION
from mme5core.languages import XTD_LANGUAGES

VALIDATION_LANGUAGES = ("pt", "fr", "uk", "ja", "cs", "hu", "vi")
"""Languages for choosing settings; they are not the benchmark's, so that settings cannot be tuned to its scores."""
NUM_NEIGHBOURS = 10

Split = Literal["unseen", "seen", "validation"]


def held_out_languages(picture: Picture) -> frozenset[str]:
    """The languages in which this picture's name is unseen: one of the benchmark's, one of the validation's.

    An emoji and its skin-tone variant share them, because the variant's name contains the plain one's.
    """

    def order(language: str) -> bytes:
        return hashlib.sha256(f"holdout {picture.emoji.without_tone} {language}".encode()).digest()

    return frozenset([min(XTD_LANGUAGES, key=order), min(VALIDATION_LANGUAGES, key=order)])


def holdout_rows(pictures: list[Picture]) -> list[dict[str, str]]:
    return [
        {"image_id": picture.key, "language": language}
        for picture in pictures
        for language in sorted(held_out_languages(picture))
    ]


def candidates(pictures: list[Picture]) -> list[Picture]:
    """Pictures without skin-tone variants; of identical pictures only the first."""
    seen: set[str] = set()
    distinct = []
    for picture in pictures:
        # Some flags look the same; two equal candidates would tie.
        if not picture.emoji.has_tone and picture.sha256 not in seen:
            seen.add(picture.sha256)
            distinct.append(picture)
    return distinct


def queries(pictures: list[Picture], split: Split) -> list[dict[str, Any]]:
    """Text-to-image queries: on the unseen pairs in the benchmark's seven languages or in those of the validation,
    or on as many seen pairs in the benchmark's languages.

    A name that two candidates share is left out. So is, among the unseen, a name that training may still have
    shown with the picture or an identical one: as a name or keyword in a language that is not held out.
    """
    distinct = candidates(pictures)
    lookalikes: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        lookalikes[picture.sha256].append(picture)
    rows = []
    languages: Collection[str] = VALIDATION_LANGUAGES if split == "validation" else XTD_LANGUAGES
    for language in languages:
        spelt = Counter(_fold(picture.emoji.names.get(language, "")) for picture in distinct)
        unseen_rows, seen_rows = [], []
        for picture in distinct:
            name = picture.emoji.names.get(language)
            if not name or spelt[_fold(name)] > 1:
                continue
            row = {
                "id": f"{split}-{language}-{picture.key}",
                "text": name,
                "instruction": QUERY_INSTRUCTION,
                "language": language,
                "positive_id": picture.key,
            }
            alike = lookalikes[picture.sha256]
            if language not in held_out_languages(picture):
                seen_rows.append(row)
            elif all(language in held_out_languages(p) for p in alike) and _fold(name) not in _may_be_read(alike):
                unseen_rows.append(row)
        if split == "seen":
            seen_rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
            rows.extend(seen_rows[: len(unseen_rows)])
        else:
            rows.extend(unseen_rows)
    return rows


def _may_be_read(pictures: list[Picture]) -> set[str]:
    """Every name and keyword that training may show with one of these pictures, folded."""
    folded = set()
    for picture in pictures:
        held_out = held_out_languages(picture)
        folded |= {_fold(name) for code, name in picture.emoji.names.items() if code not in held_out}
        for code, words in picture.emoji.keywords.items():
            if code not in held_out:
                folded |= {_fold(word) for word in words}
    return folded


def neighbours(pictures: list[Picture]) -> list[dict[str, Any]]:
    """Rows of similar pictures for each picture: variants first, then by shared keywords within the subgroup.

    score = 0.5 x the Jaccard similarity of the English keywords, + 0.5 for a variant.
    """
    by_subgroup: dict[str, list[Picture]] = defaultdict(list)
    by_base: dict[str, list[Picture]] = defaultdict(list)
    by_group: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_group[picture.emoji.group].append(picture)
        by_subgroup[picture.emoji.subgroup].append(picture)
        by_base[picture.emoji.base].append(picture)
    rows = []
    for picture in pictures:
        related = {other.key: other for other in by_subgroup[picture.emoji.subgroup]}
        related |= {other.key: other for other in by_base[picture.emoji.base]}
        if len(related) <= NUM_NEIGHBOURS:
            related |= {other.key: other for other in by_group[picture.emoji.group]}
        scored = []
        for other in related.values():
            if other.sha256 == picture.sha256:
                continue
            is_variant = other.emoji.base == picture.emoji.base
            is_near = other.emoji.subgroup == picture.emoji.subgroup
            score = 0.5 * _jaccard(_keywords(picture), _keywords(other)) + 0.5 * is_variant
            source = "variant" if is_variant else "subgroup" if is_near else "group"
            scored.append((not is_variant and not is_near, -score, other.key, source))
        for rank, (_, score, key, source) in enumerate(sorted(scored)[:NUM_NEIGHBOURS], start=1):
            rows.append(
                {
                    "query_id": picture.key,
                    "candidate_id": key,
                    "rank": rank,
                    "score": -score,
                    "source": source,
                }
            )
    return rows


def _keywords(picture: Picture) -> frozenset[str]:
    return frozenset(picture.emoji.keywords.get("en", ())) | {picture.emoji.english_name}


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()
