"""Which samples to ask for: task, modality combination, language and pictures of each, drawn reproducibly."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mme5core.languages import LANGUAGES, language_weight

# mmE5 (arXiv 2502.08468), figure 2: the modality combinations of each task.
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "classification": ("I2T", "IT2T"),
    "vqa": ("IT2T",),
    "retrieval": ("I2T", "IT2T", "T2I", "T2IT", "I2I", "IT2I", "IT2IT"),
}

# Ranks among a picture's neighbours, counted from 1: the nearest are similar enough to be a positive, those
# after them are near enough to be a hard negative. The paper gives no numbers; these are ours.
POSITIVE_RANKS = range(1, 4)
NEGATIVE_RANKS = range(4, 11)


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One sample to ask for. Pictures by id, and only those that its combination shows."""

    id: str
    task: str
    modality_combination: str
    language: str
    query_image: str | None = None
    positive_image: str | None = None
    negative_images: tuple[str, ...] = ()

    @property
    def query_modality(self) -> str:
        return self.modality_combination.partition("2")[0]

    @property
    def document_modality(self) -> str:
        return self.modality_combination.partition("2")[2]

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Every picture that the teacher is shown, in the order in which it is shown them."""
        leading = [image for image in (self.query_image, self.positive_image) if image]
        return (*leading, *self.negative_images)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What samples are drawn from.

    `combinations` weighs the modality combinations within their task, 1 where it names none.
    `languages` None means all 93, high-resource ones more often; given ones are equally likely.
    `neighbours` maps a picture to its similar ones, nearest first. `holdout` maps a picture to the languages
    that no sample with it may be in.

    Raises:
        ValueError: for an unknown task or language, or weights that add up to nothing.
    """

    seed: int = 0
    samples_per_image: int = 1
    tasks: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(COMBINATIONS, 1.0))
    combinations: Mapping[str, float] = field(default_factory=dict)
    languages: Sequence[str] | None = None
    num_negatives: int = 1
    neighbours: Mapping[str, Sequence[str]] = field(default_factory=dict)
    holdout: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in COMBINATIONS:
                raise ValueError(f"unknown task {task!r}; known: {', '.join(COMBINATIONS)}")
        if min(self.tasks.values(), default=0) < 0 or sum(self.tasks.values()) <= 0:
            raise ValueError(f"tasks must have weights >= 0 with a sum > 0, got {dict(self.tasks)}")
        known = sorted({c for combinations in COMBINATIONS.values() for c in combinations})
        for combination, weight in self.combinations.items():
            if combination not in known or weight < 0:
                raise ValueError(f"combinations: {combination!r}: {weight}; weights >= 0 for any of {', '.join(known)}")
        for language in self.languages or ():
            if language not in LANGUAGES:
                raise ValueError(f"unknown language {language!r}; known: {' '.join(LANGUAGES)}")
        if self.languages is not None and not self.languages:
            raise ValueError("languages is empty; null means all")

    @property
    def digest(self) -> str:
        """What the draws depend on besides the picture; neighbours and holdout act per picture."""
        text = json.dumps(
            [
                self.seed,
                sorted(self.tasks.items()),
                sorted(self.combinations.items()),
                list(self.languages or ()),
                self.num_negatives,
            ]
        )
        return hashlib.sha256(text.encode()).hexdigest()


def plan_image(image_id: str, settings: PlanSettings) -> list[PlannedSample]:
    """The samples planned for one picture: a function of (seed, picture id, index, settings) alone.

    A combination that needs similar pictures is drawn only where there are enough of them.
    """
    drawn = (_draw(image_id, index, settings) for index in range(settings.samples_per_image))
    return [plan for plan in drawn if plan is not None]


def _draw(image_id: str, index: int, settings: PlanSettings) -> PlannedSample | None:
    key = f"{settings.digest} {image_id} {index}"
    random_ = random.Random(hashlib.sha256(key.encode()).digest())
    neighbours = [other for other in dict.fromkeys(settings.neighbours.get(image_id, ())) if other != image_id]
    tasks = {task: weight for task, weight in sorted(settings.tasks.items()) if weight > 0}
    task = random_.choices(list(tasks), weights=list(tasks.values()))[0]
    possible = [c for c in COMBINATIONS[task] if _num_needed(c, settings) <= len(neighbours)]
    weights = [settings.combinations.get(combination, 1.0) for combination in possible]
    if not sum(weights):
        return None
    combination = random_.choices(possible, weights=weights)[0]
    query_image: str | None = image_id
    positive_image: str | None = None
    negative_images: tuple[str, ...] = ()
    if combination.endswith(("2I", "2IT")):
        negatives = neighbours
        if combination.startswith("T2"):
            query_image, positive_image = None, image_id
        else:
            positive_image = random_.choice(_at(POSITIVE_RANKS, neighbours))
            negatives = [other for other in neighbours if other != positive_image]
        far = [other for other in _at(NEGATIVE_RANKS, neighbours) if other != positive_image]
        pool = far if len(far) >= settings.num_negatives else negatives
        negative_images = tuple(random_.sample(pool, settings.num_negatives))
    shown = [image for image in (query_image, positive_image, *negative_images) if image]
    language = _draw_language(shown, settings, random_)
    if language is None:
        return None
    return PlannedSample(
        f"{image_id}-{index}", task, combination, language, query_image, positive_image, negative_images
    )


def _num_needed(combination: str, settings: PlanSettings) -> int:
    if not combination.endswith(("2I", "2IT")):
        return 0
    return settings.num_negatives + (0 if combination.startswith("T2") else 1)


def _at(ranks: range, neighbours: Sequence[str]) -> list[str]:
    return list(neighbours[ranks.start - 1 : ranks.stop - 1])


def _draw_language(image_ids: Sequence[str], settings: PlanSettings, random_: random.Random) -> str | None:
    held_out = frozenset[str]().union(*(settings.holdout.get(image, frozenset()) for image in image_ids))
    codes = [code for code in (settings.languages or LANGUAGES) if code not in held_out]
    if not codes:
        return None
    weights = [1.0 if settings.languages else language_weight(code) for code in codes]
    return random_.choices(codes, weights=weights)[0]
