"""The demo's judge and its table: who is meant scores high, and a gain is one only if its interval says so."""

from __future__ import annotations

import pytest

from mme5core.demo.judging import ALIKE, MEANT, OTHER, logprobs_of, query_of
from mme5core.judge.prompt import parts_of
from mme5core.judge.served import score_of
from mme5core.types import Content
from rayjobs.demo.full import METRICS, ROWS, interval, table_lines, table_rows

CAT = {"en": "Cat face", "de": "Katzengesicht"}, {"en": ["pet", "face", "cat"], "de": ["Katze"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("cat face", MEANT), ("Katzengesicht", MEANT), ("pet, face", MEANT), ("a dog's face", ALIKE), ("a car", OTHER)],
)
def test_a_picture_scores_by_what_it_is_called(text: str, expected: float) -> None:
    parts = parts_of(Content(text), Content(image=b"..."), "Find a picture of this:")
    prompt = "\n".join(part for part in parts if part is not None)
    top = logprobs_of(query_of(prompt), *CAT)["content"][0]["top_logprobs"]
    score = score_of([(entry["token"], entry["logprob"]) for entry in top])
    assert score == pytest.approx(expected, abs=1e-6)


def test_what_is_no_judges_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="no query and candidate"):
        query_of("Write a sample.")


def scores(gain: list[float]) -> dict[str, list[dict[str, float]]]:
    """All rows alike, but for "mined", which gains over the rows before it."""
    flat = {row.name: [dict.fromkeys(METRICS, 0.4)] * len(gain) for row in ROWS}
    return flat | {"mined": [dict.fromkeys(METRICS, 0.4 + of_seed) for of_seed in gain]}


def test_a_gain_is_named_only_where_its_interval_is_above_zero() -> None:
    sure, unsure = (
        {row["row"]: row for row in table_rows(scores(gain))} for gain in ([0.05, 0.051, 0.049], [0.0, 0.1, -0.05])
    )
    assert sure["+ mined negatives"]["is_gain"] and not unsure["+ mined negatives"]["is_gain"]
    assert not sure["+ judged negatives"]["is_gain"]
    lines = list(table_lines(list(table_rows(scores([0.0, 0.1, -0.05]))), 3))
    assert len(lines) == 1 + len(ROWS)
    (line,) = [line for line in lines if line.startswith("+ mined")]
    assert ", none, against synthetic" in line and "+0.017" in line
    assert sum("upper bound" in line for line in lines) == 2


def test_one_seed_has_no_interval() -> None:
    assert interval([0.3]) == (-1.0, 1.0)
