"""What the base model reads about a picture: its name or keywords, in a language that may be seen."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mme5core.demo.benchmark import IMAGE_INSTRUCTION, QUERY_INSTRUCTION, held_out_languages
from mme5core.demo.corpus import Picture
from mme5core.languages import language_weight

INSTRUCTIONS = (
    QUERY_INSTRUCTION,
    "Find the picture that these words name:",
    "Which picture shows this?",
)
import os

KW = float(os.environ.get("KW", 0.25))
IN = float(os.environ.get("IN", 0.5))
LARGEST_WEIGHT = float(
    os.environ.get("LW", 6)
)  # English names every picture; drawn as in the plan, little else would be read


class Captions:
    """Draws captions of pictures; never in a language that is held out for the picture."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._choices: list[tuple[list[str], list[float], Picture]] = []
        for picture in pictures:
            seen = [
                code
                for code in picture.emoji.names
                if code not in held_out_languages(picture) and language_weight(code) > 1
            ]
            weights = [min(LARGEST_WEIGHT, language_weight(code)) for code in seen]
            self._choices.append((seen, weights, picture))

    def draw(self, index: int, random_: random.Random) -> tuple[str, str | None]:
        """A text about picture `index`, and the instruction it stands under, or None."""
        languages, weights, picture = self._choices[index]
        language = random_.choices(languages, weights=weights)[0]
        text = picture.emoji.names[language]
        keywords = picture.emoji.keywords.get(language, ())
        if keywords and random_.random() < KW:
            text = ", ".join(random_.sample(keywords, min(len(keywords), 2)))
        return text, random_.choice(INSTRUCTIONS) if random_.random() < IN else None

    def tokenizer_texts(self) -> list[str]:
        """Every name that may be seen, and the instructions, often enough to become whole words."""
        names = [picture.emoji.names[code] for languages, _, picture in self._choices for code in languages]
        return names + [*INSTRUCTIONS, IMAGE_INSTRUCTION] * 1000
