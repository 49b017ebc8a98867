"""Which pictures of a corpus are used: by what is known of them, and by their size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from mme5core.images import BadImage, load_rgb
from mme5core.readers import CorpusRow
from mme5core.settings import Section, key

# As LAION and img2dataset name them; upper and lower case occur.
_KNOWN = ("NSFW", "punsafe", "pwatermark", "similarity")
COLUMNS = tuple(dict.fromkeys(name for known in _KNOWN for name in (known, known.lower(), known.upper())))


class FilterSettings(Section):
    """Which pictures of a corpus are used; a filter refuses pictures whose value it does not know."""

    nsfw: list[str] = key([], "values of the column NSFW to take, as [UNLIKELY]; empty: all")
    max_punsafe: float | None = key(None, "highest probability of being unsafe, column punsafe")
    max_pwatermark: float | None = key(None, "highest probability of a watermark, column pwatermark")
    min_similarity: float | None = key(None, "lowest similarity of picture and caption, column similarity")
    min_side: int | None = key(None, "shortest side, pixels", ge=1)
    max_aspect_ratio: float | None = key(None, "longest side over shortest", ge=1)

    @property
    def need_columns(self) -> bool:
        """Whether a filter looks at what the corpus says of a picture."""
        limits = (self.max_punsafe, self.max_pwatermark, self.min_similarity)
        return bool(self.nsfw) or any(limit is not None for limit in limits)


@dataclass(frozen=True, slots=True)
class PictureKey:
    """What makes two pictures the same, once it is known that one decodes and passes the filters; travels to tasks."""

    filters: FilterSettings

    def __call__(self, row: CorpusRow) -> bytes:
        """16 bytes of the picture's content.

        Raises:
            BadImage: it cannot be read, or a filter refuses it (`filtered_...`).
        """
        if row.images:
            raise BadImage("several_pictures", f"a sample is made of one picture, and the row has {len(row.images)}")
        if row.image is None:
            raise BadImage("no_picture", "a row without picture")
        assert isinstance(row.image, bytes), "pictures are fetched when they are filtered"
        self.check_columns(row)
        width, height = load_rgb(row.image).size
        shortest, longest = min(width, height), max(width, height)
        if self.filters.min_side is not None and shortest < self.filters.min_side:
            raise BadImage("filtered_size", f"{width} x {height}")
        if self.filters.max_aspect_ratio is not None and longest > self.filters.max_aspect_ratio * shortest:
            raise BadImage("filtered_aspect_ratio", f"{width} x {height}")
        return hashlib.sha256(row.image).digest()[:16]

    def check_columns(self, row: CorpusRow) -> None:
        """
        Raises:
            BadImage: the row's columns say that a filter refuses its picture.
        """
        # A folder of pictures says nothing of them: no value is known.
        known = {name.casefold(): entry for name, entry in json.loads(row.source or "{}").items()}
        allowed = self.filters.nsfw
        if allowed and known.get("nsfw") not in allowed:
            raise BadImage("filtered_nsfw", _shown(known.get("nsfw")))
        for name, lowest, highest in (
            ("punsafe", None, self.filters.max_punsafe),
            ("pwatermark", None, self.filters.max_pwatermark),
            ("similarity", self.filters.min_similarity, None),
        ):
            if lowest is None and highest is None:
                continue
            score = known.get(name)
            # NaN is neither above nor below anything, and is refused.
            if not isinstance(score, int | float) or not (
                (lowest is None or score >= lowest) and (highest is None or score <= highest)
            ):
                raise BadImage(f"filtered_{name}", _shown(score))


def _shown(entry: Any) -> str:
    return "not known" if entry is None else str(entry)
