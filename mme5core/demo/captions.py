"""What the base model reads about a picture: its name or keywords, in a language that may be seen."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mme5core.demo.benchmark import IMAGE_INSTRUCTION, QUERY_INSTRUCTION, held_out_languages
from mme5core.demo.corpus import Picture
from mme5core.languages import HIGH_WEIGHT, LOW_WEIGHT, language_weight

INSTRUCTIONS = (QUERY_INSTRUCTION, "Find the picture that these words name:", "Which picture shows this?")
KEYWORDS_SHARE, INSTRUCTION_SHARE = 0.25, 0.0


class Captions:
    """Draws captions of pictures; never in a language that is held out for the picture.

    The base model reads the better-resourced languages, as pretrained models do; the samples bring the others.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._choices: list[tuple[list[str], list[float], Picture]] = []
        for picture in pictures:
            allowed = picture.emoji.names.keys() - held_out_languages(picture)
            seen = sorted(code for code in allowed if language_weight(code) > LOW_WEIGHT)
            # English leads the plan by far; here it would leave little room for the others.
            weights = [min(HIGH_WEIGHT, language_weight(code)) for code in seen]
            self._choices.append((seen, weights, picture))

    def draw(self, index: int, random_: random.Random) -> tuple[str, str | None]:
        """A text about picture `index`, and the instruction it stands under, or None."""
        languages, weights, picture = self._choices[index]
        language = random_.choices(languages, weights=weights)[0]
        text = picture.emoji.names[language]
        keywords = picture.emoji.keywords.get(language, ())
        if keywords and random_.random() < KEYWORDS_SHARE:
            text = ", ".join(random_.sample(keywords, min(len(keywords), 2)))
        return text, random_.choice(INSTRUCTIONS) if random_.random() < INSTRUCTION_SHARE else None

    def tokenizer_texts(self) -> list[str]:
        """Every name that may be seen, and the instructions, often enough to become whole words."""
        names = [picture.emoji.names[code] for languages, _, picture in self._choices for code in languages]
        return names + [*INSTRUCTIONS, IMAGE_INSTRUCTION] * 1000
