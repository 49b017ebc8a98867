"""Which pictures of a corpus are used: by what is known of them, and by their size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from mme5core.images import BadImage, load_rgb
from mme5core.readers import CorpusRow

# As LAION and img2dataset name them; upper and lower case occur.
_KNOWN = ("NSFW", "punsafe", "pwatermark", "similarity")
COLUMNS = tuple(dict.fromkeys(name for known in _KNOWN for name in (known, known.lower(), known.upper())))


@dataclass(frozen=True, slots=True)
class PictureKey:
    """What makes two pictures the same, once it is known that one decodes and passes the filters; travels to tasks.

    Args:
        filters: the values of `FilterConfig`.
    """

    filters: dict[str, Any]

    def __call__(self, row: CorpusRow) -> bytes:
        """16 bytes of the picture's content.

        Raises:
            BadImage: it cannot be read, or a filter refuses it (`filtered_...`).
        """
        if row.image is None:
            raise BadImage("no_picture", "a row without picture")
        self._check_columns(row)
        width, height = load_rgb(row.image).size
        shortest, longest = min(width, height), max(width, height)
        if self.filters["min_side"] is not None and shortest < self.filters["min_side"]:
            raise BadImage("filtered_size", f"{width} x {height}")
        if self.filters["max_aspect_ratio"] is not None and longest > self.filters["max_aspect_ratio"] * shortest:
            raise BadImage("filtered_aspect_ratio", f"{width} x {height}")
        return hashlib.sha256(row.image).digest()[:16]

    def _check_columns(self, row: CorpusRow) -> None:
        # A folder of pictures says nothing of them: no value is known.
        values = {name.casefold(): value for name, value in json.loads(row.source or "{}").items()}
        allowed = self.filters["nsfw"]
        if allowed and values.get("nsfw") not in allowed:
            raise BadImage("filtered_nsfw", _shown(values.get("nsfw")))
        for name, lowest, highest in (
            ("punsafe", None, self.filters["max_punsafe"]),
            ("pwatermark", None, self.filters["max_pwatermark"]),
            ("similarity", self.filters["min_similarity"], None),
        ):
            if lowest is None and highest is None:
                continue
            value = values.get(name)
            # NaN is neither above nor below anything, and no answer.
            if not isinstance(value, int | float) or not (
                (lowest is None or value >= lowest) and (highest is None or value <= highest)
            ):
                raise BadImage(f"filtered_{name}", _shown(value))


def _shown(value: Any) -> str:
    return "not known" if value is None else str(value)
