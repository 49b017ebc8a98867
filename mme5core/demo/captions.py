"""Captions of pictures to train the base model: names or keywords, in a language that is not held out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mme5core.demo.benchmark import held_out_languages
from mme5core.demo.corpus import Picture
from mme5core.demo.instructions import IMAGE_INSTRUCTION, INSTRUCTIONS
from mme5core.languages import HIGH_WEIGHT, LOW_WEIGHT, language_weight

KEYWORDS_SHARE = 0.25
LINE_SHARE = 0.75
PROMPT_SHARE = 0.1
PROMPTS = (
    "Describe the picture:",
    "This is",
    "What do you see?",
    "Caption:",
    "A photo of",
    "Name it:",
    "Look:",
    "Answer in one word:",
)


class Captions:
    """Draws captions of pictures; never in a language that is held out for the picture.

    The base model is trained on the better-resourced languages, as pretrained models are; the samples add the others.
    Most captions end with a newline, as texts on the web do, and a few follow a prompt, as in pretraining data. None
    has an instruction of the demo: following those is left to the adapter.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._choices: list[tuple[list[str], list[float], Picture]] = []
        for picture in pictures:
            seen = picture.emoji.names.keys() - held_out_languages(picture)
            allowed = sorted(code for code in seen if language_weight(code) > LOW_WEIGHT)
            # Capped: at its weight in the plan, English would leave little for the other languages.
            weights = [min(HIGH_WEIGHT, language_weight(code)) for code in allowed]
            self._choices.append((allowed, weights, picture))

    def draw(self, index: int, random_: random.Random) -> str:
        """A text about picture `index`."""
        languages, weights, picture = self._choices[index]
        language = random_.choices(languages, weights=weights)[0]
        text = picture.emoji.names[language]
        keywords = picture.emoji.keywords.get(language, ())
        if keywords and random_.random() < KEYWORDS_SHARE:
            text = ", ".join(random_.sample(keywords, min(len(keywords), 2)))
        if random_.random() < PROMPT_SHARE:
            return f"{random_.choice(PROMPTS)} {text}\n"
        return text + "\n" if random_.random() < LINE_SHARE else text

    def tokenizer_texts(self) -> list[str]:
        """Every name that may be drawn, and English prompts, repeated so that their words become tokens."""
        names = [picture.emoji.names[code] for languages, _, picture in self._choices for code in languages]
        english = [IMAGE_INSTRUCTION, *PROMPTS, *(text for texts in INSTRUCTIONS.values() for text in texts)]
        return names + english * 500
