"""What the base model reads about a picture: its name or keywords, in a language that may be seen."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mme5core.demo.benchmark import held_out_languages
from mme5core.demo.corpus import Picture
from mme5core.languages import HIGH_WEIGHT, LOW_WEIGHT, language_weight

# A pretrained model has met instructions, now and then and in other words than a benchmark's or a teacher's.
TEXT_INSTRUCTIONS = (
    "Show an image of this.",
    "Look for the picture of:",
    "Find the image that belongs to these words.",
    "Which picture has this name?",
    "Retrieve pictures for the caption.",
    "Search an image by its caption.",
    "Match this phrase with a picture.",
    "The picture shows:",
    "Choose the image for this text.",
    "Name of an image:",
    "Find the drawing that is described.",
    "Identify the picture from the given words.",
)
IMAGE_INSTRUCTIONS = ("Describe the given image.", "Represent this picture.", "What does the image show?", "The image:")
KEYWORDS_SHARE, INSTRUCTION_SHARE = 0.25, 0.1


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
        return text, random_.choice(TEXT_INSTRUCTIONS) if random_.random() < INSTRUCTION_SHARE else None

    def draw_image_instruction(self, random_: random.Random) -> str | None:
        return random_.choice(IMAGE_INSTRUCTIONS) if random_.random() < INSTRUCTION_SHARE else None

    def tokenizer_texts(self) -> list[str]:
        """Every name that may be seen, and the instructions, often enough to become whole words."""
        names = [picture.emoji.names[code] for languages, _, picture in self._choices for code in languages]
        return names + [*TEXT_INSTRUCTIONS, *IMAGE_INSTRUCTIONS] * 500
