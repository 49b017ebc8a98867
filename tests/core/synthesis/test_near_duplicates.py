"""Tests of samples that say the same of the same pictures."""

from __future__ import annotations

from mme5core.synthesis.near_duplicates import Seen
from mme5core.synthesis.plan import PlannedSample
from mme5core.types import Content, Sample


def reasons(*texts: str, threshold: float | None = 0.9, images: str = "", language: str = "it") -> list[str]:
    seen = Seen(threshold)
    found = []
    for number, text in enumerate(texts):
        image = images[number] if images else "q"
        plan = PlannedSample(str(number), "retrieval", "I2T", language, image)
        sample = Sample(str(number), Content(image=b"q"), Content(text), (), "Find the words for this picture.")
        rejected = seen.check(sample, plan)
        found.append(rejected.reason if rejected else "kept")
    return found


def test_the_first_is_kept_and_what_says_the_same_again_is_not() -> None:
    text = "un gatto rosso dorme sul divano davanti alla finestra aperta"
    assert reasons(text, text, f"{text}!", text.upper(), f"{text} ora") == [
        "kept", "duplicate_sample", "duplicate_sample", "duplicate_sample", "near_duplicate_sample",
    ]  # fmt: skip
    assert reasons(text, "due cani giocano nel parco con una palla gialla") == ["kept", "kept"]


def test_another_picture_makes_another_sample() -> None:
    assert reasons("gatto", "gatto", images="ab") == ["kept", "kept"]


def test_without_a_threshold_everything_is_kept_and_at_one_only_equals_go() -> None:
    assert reasons("gatto", "gatto", threshold=None) == ["kept", "kept"]
    assert reasons("un gatto rosso", "un gatto rosso.", "un gatto rossa", threshold=1.0) == [
        "kept", "duplicate_sample", "kept",
    ]  # fmt: skip
