"""The samples to generate: task, modality combination, language and pictures of each, drawn reproducibly."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mme5core.languages import LANGUAGES, language_weight

# mmE5 (arXiv 2502.08468), figure 2: the modality combinations of each task. `fused` is GME's (arXiv 2412.16855): a
# text query, rewritten so that it cannot be understood without a picture.
COMBINATIONS: dict[str, tuple[str, ...]] = {
    "classification": ("I2T", "IT2T"),
    "vqa": ("IT2T",),
    "retrieval": ("I2T", "IT2T", "T2I", "T2IT", "I2I", "IT2I", "IT2IT"),
    "fused": ("IT2T", "IT2IT"),
}


@dataclass(frozen=True, slots=True)
class PlannedSample:
    """One sample to generate. Pictures are given by id; only those that its combination shows are set."""

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
        """The distinct pictures of the sample, the query's first."""
        named = (self.query_image, self.positive_image, *self.negative_images)
        return tuple(dict.fromkeys(image for image in named if image))

    @property
    def seed(self) -> int:
        """Sent with the request, so that two samples with equal prompts are two requests."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:4]) >> 1


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A picture similar to another one; `score` is the similarity by the encoder named in `source`."""

    id: str
    score: float = 0.0
    source: str = ""


Band = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class PairRules:
    """Which neighbours of a picture may be its positive, and which its hard negatives.

    Ranks count from 1 within each source, over usable pictures; both ends are included. The nearest are similar enough
    to be a positive, those after them similar enough to be a hard negative. mmE5 publishes no numbers; these are ours.
    With several sources (encoders), a neighbour must meet the rule in one of them, as in MegaPairs (arXiv 2412.14475),
    whose similarity ranges are `positive_scores` and `negative_scores`.

    Args:
        query_as_negative: if the combination has pictures on both sides, the query's own picture is the first hard
            negative (MegaPairs).

    Raises:
        ValueError: a range ends before it starts, or a rank is below 1.
    """

    positive_ranks: tuple[int, int] = (1, 3)
    negative_ranks: tuple[int, int] = (4, 10)
    positive_scores: Band = (None, None)
    negative_scores: Band = (None, None)
    query_as_negative: bool = False

    def __post_init__(self) -> None:
        for name in ("positive_ranks", "negative_ranks"):
            first, last = getattr(self, name)
            if not 1 <= first <= last:
                raise ValueError(f"{name}: 1 <= first <= last, got {first}, {last}")
        for name in ("positive_scores", "negative_scores"):
            low, high = getattr(self, name)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{name}: lowest <= highest, got {low}, {high}")

    def positives(self, neighbours: Sequence[Neighbour]) -> list[str]:
        return _chosen(neighbours, self.positive_ranks, self.positive_scores)

    def negatives(self, neighbours: Sequence[Neighbour]) -> list[str]:
        return _chosen(neighbours, self.negative_ranks, self.negative_scores)

    def in_any_band(self, neighbours: Sequence[Neighbour]) -> list[str]:
        """Neighbours of any rank whose scores allow them as hard negatives."""
        return _chosen(neighbours, (1, len(neighbours)), self.negative_scores)


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings of the draws.

    `combinations` are weights of modality combinations within their task; those that it does not name are not drawn,
    except in a task of which it names none: there all are equally likely.
    `languages` None means all 93, high-resource ones more often; given ones are equally likely.
    `holdout` maps a picture to the languages that no sample with it may have.

    Raises:
        ValueError: a task or language is unknown, or the weights sum to 0.
    """

    seed: int = 0
    samples_per_image: int = 1
    tasks: Mapping[str, float] = field(
        default_factory=lambda: {"classification": 1.0, "vqa": 1.0, "retrieval": 2.0},
    )
    combinations: Mapping[str, float] = field(default_factory=dict)
    languages: Sequence[str] | None = None
    num_negatives: int = 1
    pairs: PairRules = PairRules()
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
        for task, weight in self.tasks.items():
            if weight > 0 and not sum(self.weights_of(task).values()):
                raise ValueError(f"combinations: those of {task} have no weight; tasks.{task}=0 leaves it out")
        for language in self.languages or ():
            if language not in LANGUAGES:
                raise ValueError(f"unknown language {language!r}; known: {' '.join(LANGUAGES)}")
        if self.languages is not None and not self.languages:
            raise ValueError("languages is empty; null means all")

    def weights_of(self, task: str) -> dict[str, float]:
        """The weight of each modality combination within a task.

        >>> PlanSettings(combinations={"T2I": 2, "I2T": 1}).weights_of("classification")
        {'I2T': 1, 'IT2T': 0.0}
        >>> PlanSettings(combinations={"T2I": 2}).weights_of("vqa")
        {'IT2T': 1.0}
        """
        names = COMBINATIONS[task]
        rest = 0.0 if any(name in self.combinations for name in names) else 1.0
        return {name: self.combinations.get(name, rest) for name in names}

    def never_drawn(self) -> list[str]:
        """The modality combinations with a weight that cannot be drawn for pictures without neighbours.

        >>> PlanSettings(combinations={"T2I": 2, "I2T": 1}).never_drawn()
        ['T2I']
        """
        weighted = {
            combination
            for task in self.tasks
            if self.tasks[task] > 0
            for combination, weight in self.weights_of(task).items()
            if weight > 0
        }
        return sorted(combination for combination in weighted if not _NO_NEIGHBOURS.suffices(combination, self))

    @cached_property
    def language_weights(self) -> dict[str, float]:
        """The weight of every language that may be drawn."""
        if self.languages:
            return dict.fromkeys(self.languages, 1.0)
        return {code: language_weight(code) for code in LANGUAGES}

    @cached_property
    def digest(self) -> str:
        """A hash of the settings that the draws of every picture depend on; pair rules and holdout only affect some."""
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


def plan_image(image_id: str, settings: PlanSettings, neighbours: Sequence[Neighbour] = ()) -> list[PlannedSample]:
    """The samples planned for one picture: a function of (seed, picture id, index, settings, neighbours) alone.

    A combination that needs similar pictures is drawn only if there are enough of them.

    Args:
        neighbours: the picture's neighbours, nearest first within each source.
    """
    near = _Near.of([neighbour for neighbour in neighbours if neighbour.id != image_id], settings.pairs)
    drawn = (_draw(image_id, index, settings, near) for index in range(settings.samples_per_image))
    return [plan for plan in drawn if plan is not None]


@dataclass(frozen=True, slots=True)
class _Near:
    """Ids of a picture's neighbours that may be positives or hard negatives.

    `in_any_band` may be hard negatives if `negatives` are too few.
    """

    positives: Sequence[str]
    negatives: Sequence[str]
    in_any_band: Sequence[str]

    @classmethod
    def of(cls, neighbours: Sequence[Neighbour], rules: PairRules) -> _Near:
        if not neighbours:
            return cls((), (), ())
        return cls(rules.positives(neighbours), rules.negatives(neighbours), rules.in_any_band(neighbours))

    def suffices(self, combination: str, settings: PlanSettings) -> bool:
        """Whether there are enough neighbours for a combination."""
        if not combination.endswith(("2I", "2IT")):
            return True
        wanted = settings.num_negatives - _own_negative(combination, settings)
        if combination.startswith("T2"):
            return len(self.in_any_band) >= wanted
        # Enough must be left whichever of the positives is drawn.
        is_one_less = any(positive in self.in_any_band for positive in self.positives)
        return bool(self.positives) and len(self.in_any_band) - is_one_less >= wanted


_NO_NEIGHBOURS = _Near((), (), ())


def _draw(image_id: str, index: int, settings: PlanSettings, near: _Near) -> PlannedSample | None:
    key = f"{settings.digest} {image_id} {index}"
    random_ = random.Random(hashlib.sha256(key.encode()).digest())
    tasks = {task: weight for task, weight in sorted(settings.tasks.items()) if weight > 0}
    task = random_.choices(list(tasks), weights=list(tasks.values()))[0]
    possible = {c: weight for c, weight in settings.weights_of(task).items() if near.suffices(c, settings)}
    if not sum(possible.values()):
        return None
    combination = random_.choices(list(possible), weights=list(possible.values()))[0]
    query_image: str | None = image_id
    positive_image: str | None = None
    negative_images: tuple[str, ...] = ()
    if combination.endswith(("2I", "2IT")):
        if combination.startswith("T2"):
            query_image, positive_image = None, image_id
        else:
            positive_image = random_.choice(near.positives)
        own = _own_negative(combination, settings)
        wanted = settings.num_negatives - own
        far = [other for other in near.negatives if other != positive_image]
        nearest = [other for other in near.in_any_band if other != positive_image]
        drawn = random_.sample(far if len(far) >= wanted else nearest, wanted)
        negative_images = (image_id, *drawn) if own else tuple(drawn)
    shown = [image for image in (query_image, positive_image, *negative_images) if image]
    language = _draw_language(shown, settings, random_)
    if language is None:
        return None
    return PlannedSample(
        f"{image_id}-{index}", task, combination, language, query_image, positive_image, negative_images
    )


def _own_negative(combination: str, settings: PlanSettings) -> int:
    """Number of hard negatives that are the query's own picture: 0 or 1."""
    has_both = combination.startswith("I") and combination.endswith(("2I", "2IT"))
    return int(settings.pairs.query_as_negative and has_both and settings.num_negatives > 0)


def _chosen(neighbours: Sequence[Neighbour], ranks: tuple[int, int], scores: Band) -> list[str]:
    """Distinct ids of the neighbours within ranks and scores in any source, in the order given."""
    low, high = scores
    chosen: dict[str, None] = {}
    seen: dict[str, list[str]] = {}
    for neighbour in neighbours:
        before = seen.setdefault(neighbour.source, [])
        if neighbour.id in before:
            continue
        before.append(neighbour.id)
        is_near = (low is None or neighbour.score >= low) and (high is None or neighbour.score <= high)
        if ranks[0] <= len(before) <= ranks[1] and is_near:
            chosen[neighbour.id] = None
    return list(chosen)


def _draw_language(image_ids: Sequence[str], settings: PlanSettings, random_: random.Random) -> str | None:
    weights = settings.language_weights
    held_out = frozenset[str]().union(*(settings.holdout.get(image, ()) for image in image_ids))
    if held_out:
        weights = {code: weight for code, weight in weights.items() if code not in held_out}
    return random_.choices(list(weights), weights=list(weights.values()))[0] if weights else None
