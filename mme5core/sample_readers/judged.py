"""UniME-V2's judged training data (train_data_*_scores.json): texts and picture paths, with a judge's scores."""

from __future__ import annotations

import re
from typing import Any

from mme5core.sample_readers.sample_format import PictureFolder, Row, SampleFormat
from mme5core.types import Content, Sample

PICTURE_MARK = "<|image_1|>"
_MARK = re.compile(re.escape(PICTURE_MARK) + r"\s*")


def to_sample(row: Row, pictures: PictureFolder | None = None) -> Sample:
    """One row as a sample; its texts hold instructions already.

    Raises:
        ValueError: a content is empty, texts, pictures or scores are not of the format, or their numbers differ.
        BadImage: a picture is not in `pictures`.
    """
    negatives, scores = row["hard_negatives"], row["hard_negatives_scores"]
    if not isinstance(negatives, list) or not isinstance(scores, list):
        raise ValueError("hard_negatives and hard_negatives_scores must be lists")
    if len(negatives) != len(scores):
        raise ValueError(f"{len(negatives)} hard_negatives with {len(scores)} scores")
    pairs = [pair for pair in negatives if isinstance(pair, list) and len(pair) == 2]
    if len(pairs) < len(negatives):
        raise ValueError("each of hard_negatives must be [text, image]")
    return Sample(
        row["id"],
        _content(row["query_text"], row["query_image"], pictures),
        _content(row["pos_text"], row["pos_image"], pictures),
        tuple(_content(text, path, pictures) for text, path in pairs),
        None,
        None,
        scores=tuple(map(_score, [row["query_pos_scores"], *scores])),
    )


def to_row(sample: Sample, paths: dict[int, str]) -> dict[str, Any]:
    """A sample as a row of the format, its instructions in its texts.

    Args:
        paths: of pictures, by `id` of the picture.

    Raises:
        ValueError: a content has several pictures, or there are no scores.
    """
    if len(sample.scores) < 1 + len(sample.negatives):
        raise ValueError("a judged sample has a score for its positive and for each negative")

    def cells(content: Content, instruction: str | None) -> tuple[str, str]:
        if len(content.images) > 1:
            raise ValueError("the format takes one picture a content")
        text = " ".join(part for part in (instruction, content.text) if part)
        if not content.images:
            return text, ""
        return f"{PICTURE_MARK}\n{text}" if text else PICTURE_MARK, paths[id(content.images[0])]

    query, positive = cells(sample.query, sample.instruction), cells(sample.positive, sample.document_instruction)
    return {
        "query_text": query[0],
        "query_image": query[1],
        "pos_text": positive[0],
        "pos_image": positive[1],
        "query_pos_scores": sample.scores[0],
        "hard_negatives": [list(cells(negative, sample.document_instruction)) for negative in sample.negatives],
        "hard_negatives_scores": list(sample.scores[1 : 1 + len(sample.negatives)]),
    }


def _content(text: Any, path: Any, pictures: PictureFolder | None) -> Content:
    if not isinstance(text, str) or not isinstance(path, str):
        raise ValueError("texts and picture paths must be strings; an empty one stands for none")
    if not path:
        return Content(text if text.strip() else None)
    if pictures is None:
        raise ValueError(f"a picture at {path!r}: images= names the folder of pictures")
    # The mark says where the picture stands, which every family marks in its own way.
    return Content(_MARK.sub("", text, count=1) or None, pictures.picture(path))


def _score(score: Any) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise ValueError(f"a score is a number in [0, 1], not {score!r}"[:80])
    return float(score)


FORMAT = SampleFormat(
    required=(
        "query_text",
        "query_image",
        "pos_text",
        "pos_image",
        "query_pos_scores",
        "hard_negatives",
        "hard_negatives_scores",
    ),
    optional=("id",),
    to_sample=to_sample,
)
