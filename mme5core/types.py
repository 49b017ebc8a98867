"""The nouns of the domain: contents to embed, training samples, benchmark queries, refused inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Modality = Literal["T", "I", "IT"]
MODALITIES: tuple[Modality, ...] = ("T", "I", "IT")

# A picture as callers pass it: a path, encoded bytes (JPEG, PNG, ...), or an open PIL image.
ImageRef = Any


@dataclass(frozen=True, slots=True, init=False)
class Content:
    """The input of one embedding: a text, one or several pictures, or a text with pictures.

    `images` are all its pictures in order; `image` is the picture of a content that has exactly one.

    >>> Content(text="a cat").modality
    'T'
    >>> Content(text="what is this?", image="page.png")
    Content(text='what is this?', images=('page.png',))
    >>> two = Content("what has changed?", images=("before.png", "after.png"))
    >>> two.modality, two.image, len(two.images)
    ('IT', None, 2)

    Args:
        text: None or empty for none.
        image: the one-picture case: `image=x` and `images=(x,)` are the same content.
        images: several pictures, such as pages of a document or frames of a video.

    Raises:
        ValueError: there is neither text nor picture; the text is not a string; `images` is not a list or tuple of
            pictures; `image` and `images` are both given and differ.
    """

    text: str | None
    images: tuple[ImageRef, ...]

    def __init__(self, text: str | None = None, image: ImageRef | None = None, images: Sequence[ImageRef] = ()) -> None:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"text must be a string, got {type(text).__name__}")
        if isinstance(image, list | tuple):
            raise ValueError(f"image is one picture, got a {type(image).__name__}; several are given as images=")
        if not isinstance(images, list | tuple):
            raise ValueError(f"images must be a list or tuple of pictures, got {type(images).__name__}")
        if any(picture is None for picture in images):
            raise ValueError(f"images must be pictures, got None at place {list(images).index(None)}")
        pictures = tuple(images)
        if image is not None:
            if pictures and pictures != (image,):
                raise ValueError(f"image and images differ ({len(pictures)} in images); give one of the two")
            pictures = (image,)
        if not pictures and not text:
            raise ValueError("content needs a text, a picture, or both; got neither")
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "images", pictures)

    @property
    def image(self) -> ImageRef | None:
        """The picture, if there is exactly one; otherwise None."""
        return self.images[0] if len(self.images) == 1 else None

    @property
    def modality(self) -> Modality:
        if not self.images:
            return "T"
        return "IT" if self.text else "I"


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sample: a query under its instruction, its positive, and its hard negatives.

    `scores` are a judge's scores of the positive and of each negative, in [0, 1]; empty without a judge.
    """

    id: str
    query: Content
    positive: Content
    negatives: tuple[Content, ...] = ()
    instruction: str | None = None
    document_instruction: str | None = None
    source: str = ""
    task: str = ""
    scores: tuple[float, ...] = ()

    @property
    def modality_combination(self) -> str:
        """Modalities of query and positive, as in `IT2I`."""
        return f"{self.query.modality}2{self.positive.modality}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A refused input: `reason` names a counter, `detail` explains it to users."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EvalQuery:
    """One benchmark query, with the relevance of candidates to it.

    >>> query = EvalQuery("q1", Content("a cat"), "Find the picture:", {"cat.jpg": 1.0}, language="en")
    >>> query.positive_id
    'cat.jpg'

    Args:
        content: None if the benchmark does not contain it; its vector is then looked up by `id`.
        relevance: the relevance, above 0, of each relevant candidate by id; all others are not relevant.
        candidate_ids: the query's own candidates; None: all candidates of the benchmark.
        language: language code; empty if the benchmark states none.

    Raises:
        ValueError: no candidate is relevant, a relevance is not above 0 or not finite, a candidate occurs twice, or a
            relevant one is not among the query's own candidates.
    """

    id: str
    content: Content | None
    instruction: str | None
    relevance: Mapping[str, float]
    candidate_ids: tuple[str, ...] | None = None
    language: str = ""

    def __post_init__(self) -> None:
        if not self.relevance:
            raise ValueError(f"query {self.id!r} has no relevant candidate")
        for candidate, relevance in self.relevance.items():
            if not 0 < relevance < math.inf:  # NaN fails too
                raise ValueError(
                    f"query {self.id!r}: relevance must be > 0 and finite, got {relevance} for {candidate!r}"
                )
        if self.candidate_ids is None:
            return
        own = set(self.candidate_ids)
        if len(own) < len(self.candidate_ids):
            raise ValueError(f"query {self.id!r}: a candidate occurs twice in candidate_ids")
        if not own.issuperset(self.relevance):
            strangers = sorted(self.relevance.keys() - own)
            raise ValueError(f"query {self.id!r}: {strangers[0]!r} is relevant, but not in candidate_ids")

    @property
    def positive_id(self) -> str:
        """The relevant candidate of a query that has exactly one.

        Raises:
            ValueError: there are several.
        """
        if len(self.relevance) > 1:
            raise ValueError(f"query {self.id!r} has {len(self.relevance)} relevant candidates, not one")
        return next(iter(self.relevance))
