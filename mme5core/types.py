"""The nouns of the domain: what is embedded, what is trained on, what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Modality = Literal["T", "I", "IT"]
MODALITIES: tuple[Modality, ...] = ("T", "I", "IT")

# A picture as a caller holds it: a path, encoded bytes (JPEG, PNG, ...), or an open PIL image.
ImageRef = Any


@dataclass(frozen=True, slots=True)
class Content:
    """What one embedding stands for: a text, a picture, or both.

    >>> Content(text="a cat").modality
    'T'
    >>> Content(text="what is this?", image=b"...").modality
    'IT'

    Raises:
        ValueError: if there is neither text nor picture, or the text is not a string.
    """

    text: str | None = None
    image: ImageRef | None = None

    def __post_init__(self) -> None:
        if self.text is not None and not isinstance(self.text, str):
            raise ValueError(f"text must be a string, got {type(self.text).__name__}")
        if self.image is None and not self.text:
            raise ValueError("content needs a text, a picture, or both; got neither")

    @property
    def modality(self) -> Modality:
        if self.image is None:
            return "T"
        return "IT" if self.text else "I"


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sample: a query under its instruction, its positive, and its hard negatives.

    `scores` are a judge's, of the positive and then of each negative, in [0, 1]; empty where nobody judged.
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
        """Query and positive, as in `IT2I`; derived, never stored twice."""
        return f"{self.query.modality}2{self.positive.modality}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """An input that was refused, and why: `reason` is a counter's name, `detail` is for people."""

    id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EvalQuery:
    """One benchmark query: the vector `id` should find `positive_id` among the candidates."""

    id: str
    positive_id: str
    language: str
    text: str = ""
    instruction: str | None = None
