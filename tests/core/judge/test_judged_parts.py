"""From mined candidates to judged samples: which are judged, which are chosen, and why a sample is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.images import BadImage
from mme5core.judge.candidates import ToJudge
from mme5core.judge.judged_parts import JudgeBlock
from mme5core.judge.judged_rows import JudgedRows
from mme5core.judge.plan import plan_judging
from mme5core.judge.settings import JudgeSettings, SelectionSettings
from mme5core.sample_readers import read_samples
from mme5core.sample_readers.ours import to_struct
from mme5core.sample_table import SampleTable, map_samples
from mme5core.schemas import JUDGED, NEIGHBOURS
from mme5core.types import Content, Rejected, Sample

Score = Callable[[str, str], float]


class StandIn:
    """A judge whose scores the test decides."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self.asked: list[tuple[str, str, str | None]] = []

    def scores(
        self, pairs: Sequence[tuple[Content, Content]], instruction: str | None, *, on_bad: Any, **_: Any
    ) -> np.ndarray:
        scores = []
        for place, (query, candidate) in enumerate(pairs):
            self.asked.append((query.text or "", candidate.text or "", instruction))
            scores.append(self._score(query.text or "", candidate.text or ""))
            if np.isnan(scores[-1]):
                on_bad(place, BadImage("broken_image", "a test"))
        return np.array(scores, np.float32)


def judged(
    folder: Path, positives: Sequence[str], near: dict[str, list[str]], score: Score, **selection: Any
) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, int], StandIn]:
    """Rows, reasons of refusals, counts and the judge, of samples n with the query "qn"."""
    rows = [
        {
            "id": str(n),
            "query": to_struct(Content(f"q{n}")),
            "positive": to_struct(Content(text)),
            "negatives": [to_struct(Content("old"))],
            "instruction": "Find:",
            "document_instruction": "Doc:",
            "task": "retrieval",
        }
        for n, text in enumerate(positives)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    list(map_samples({"input": [folder / "samples.parquet"]}, folder / "samples.arrow", num_negatives=0, limit=None))
    table = SampleTable(folder / "samples.arrow")
    neighbours = [
        {"query_id": query, "candidate_id": candidate, "rank": rank, "score": 0.5, "source": "nearest"}
        for query, candidates in near.items()
        for rank, candidate in enumerate(candidates, 1)
    ]
    pq.write_table(pa.Table.from_pylist(neighbours, NEIGHBOURS), folder / "near.parquet")
    keys = {"positive_keys": table.positive_keys, "candidate_keys": table.positive_keys}
    plan = plan_judging(table.ids(), [folder / "near.parquet"], folder / "candidates", **keys)
    (folder / "parts").mkdir()
    to_judge = ToJudge(folder / "samples.arrow", None, plan, 100)
    block = JudgeBlock(to_judge, JudgedRows(SelectionSettings(**selection), 0), folder / "parts", JudgeSettings())
    judge = StandIn(score)
    report = block.work({"part": 0, "start": 0, "stop": len(table)}, (judge, to_judge.tables()))  # type: ignore[arg-type]
    kept = pq.read_table(folder / "parts" / report["file"]["name"])
    assert kept.schema.equals(JUDGED)
    refused = pq.read_table(folder / "parts" / report["refusals"]["name"]).to_pylist()
    counts = {name: report[name] for name in ("kept", "pairs", "wrong_positives", "fewer", "unshown")}
    counts["unknown"] = plan.num_unknown
    return kept.to_pylist(), {row["id"]: row["reason"] for row in refused}, counts, judge


TEXTS = [f"text {n}" for n in range(30)]


def test_positive_and_candidates_are_judged_in_mined_order_under_the_samples_instruction(tmp_path: Path) -> None:
    rows, refused, counts, judge = judged(
        tmp_path,
        TEXTS,
        {"0": ["5", "3", "29"], "1": ["0"]},
        lambda query, text: 0.9 if text == f"text {query[1:]}" else 0.2,
    )
    assert judge.asked == [
        ("q0", "text 0", "Find:"),
        ("q0", "text 5", "Find:"),
        ("q0", "text 3", "Find:"),
        ("q0", "text 29", "Find:"),
        ("q1", "text 1", "Find:"),
        ("q1", "text 0", "Find:"),
    ]
    assert [(row["id"], row["negative_ids"]) for row in rows] == [("0", ["5", "3", "29"]), ("1", ["0"])]
    np.testing.assert_allclose(rows[0]["scores"], [0.9, 0.2, 0.2, 0.2])
    assert [negative["text"] for negative in rows[0]["negatives"]] == ["text 5", "text 3", "text 29"]
    assert set(refused.values()) == {"no_candidate"} and len(refused) == 28
    assert counts == {"kept": 2, "pairs": 6, "wrong_positives": 0, "fewer": 2, "unshown": 0, "unknown": 0}


def test_what_is_written_is_read_as_samples_with_scores(tmp_path: Path) -> None:
    rows, _, _, _ = judged(tmp_path, TEXTS, {"0": ["5", "3"]}, lambda query, text: 0.9 if text == "text 0" else 0.25)
    pq.write_table(pa.Table.from_pylist(rows, JUDGED), tmp_path / "judged.parquet")
    (sample,) = read_samples(tmp_path / "judged.parquet")
    assert isinstance(sample, Sample)
    assert sample.negatives == (Content("text 5"), Content("text 3"))
    np.testing.assert_allclose(sample.scores, [0.9, 0.25, 0.25])
    assert (sample.query, sample.instruction, sample.document_instruction) == (Content("q0"), "Find:", "Doc:")


def test_the_published_rule_chooses_among_the_survivors(tmp_path: Path) -> None:
    # Even candidates may be positives: of the odd ones 1, 11, 21, then 3, 13, 23, ... are left.
    near = [str(n) for n in range(1, 30)]
    rows, _, counts, _ = judged(
        tmp_path,
        TEXTS,
        {"0": near},
        lambda query, text: 0.8 if text == "text 0" else 0.795 if int(text.split()[1]) % 2 == 0 else 0.3,
        count=5,
    )
    assert rows[0]["negative_ids"] == ["1", "11", "21", "3", "13"]
    assert counts["fewer"] == 0


def test_a_content_is_judged_once_and_the_positive_never(tmp_path: Path) -> None:
    texts = ["same", "same", "other", "other", "third"]
    rows, _, _, judge = judged(
        tmp_path, texts, {"0": ["1", "2", "3", "4"]}, lambda query, text: 0.9 if text == "same" else 0.1
    )
    assert [text for _, text, _ in judge.asked] == ["same", "other", "third"]
    assert rows[0]["negative_ids"] == ["2", "4"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, "no_negative"),
        ({"fill": "published", "count": 3}, ([0.4, 1.0, 1.0, 1.0], 3)),
        ({"fill": "published", "count": 3, "beta": 0.0}, ([0.4, 0.4, 0.4, 0.4], 1)),
    ],
)
def test_an_empty_or_small_set_of_survivors_is_refused_or_filled_as_published(
    tmp_path: Path, selection: dict[str, Any], expected: Any
) -> None:
    def score(query: str, text: str) -> float:
        return 0.4 if text in ("text 0", "text 7") else 0.6

    rows, refused, counts, _ = judged(tmp_path, TEXTS, {"0": ["5", "6", "7", "8"]}, score, **selection)
    if isinstance(expected, str):
        assert refused["0"] == expected and not rows
        return
    scores, num_distinct = expected
    np.testing.assert_allclose(rows[0]["scores"], scores)
    assert len(set(rows[0]["negative_ids"])) == num_distinct and counts["fewer"] == 1


@pytest.mark.parametrize(("least", "reason"), [(None, None), (0.5, "positive_judged_wrong"), (0.3, None)])
def test_a_positive_that_is_judged_wrong_is_counted_and_refused_by_option(
    tmp_path: Path, least: float | None, reason: str | None
) -> None:
    rows, refused, counts, _ = judged(
        tmp_path,
        TEXTS,
        {"0": ["5"]},
        lambda query, text: 0.4 if text == "text 0" else 0.1,
        min_positive_score=least,
    )
    assert refused.get("0") == reason and len(rows) == (reason is None) and counts["wrong_positives"] == 1


def test_what_cannot_be_shown_is_no_negative_and_a_positive_that_cannot_refuses_its_sample(tmp_path: Path) -> None:
    def score(query: str, text: str) -> float:
        return float("nan") if text in ("text 5", "text 1") else 0.9 if text == "text 0" else 0.1

    rows, refused, counts, _ = judged(tmp_path, TEXTS, {"0": ["4", "5", "6"], "1": ["4"]}, score)
    assert rows[0]["negative_ids"] == ["4", "6"] and refused["1"] == "unshown_positive" and counts["unshown"] == 2


def test_neighbours_of_other_corpora_and_of_several_rules_are_counted_and_joined(tmp_path: Path) -> None:
    rows, _, counts, judge = judged(
        tmp_path,
        TEXTS,
        {"0": ["9", "x", "8", "9", "0"], "elsewhere": ["1"]},
        lambda query, text: 0.9 if text == "text 0" else 0.1,
    )
    assert rows[0]["negative_ids"] == ["9", "8"] and counts["unknown"] == 2
    assert len(judge.asked) == 3


def test_a_refused_row_names_how_many_scored_above(tmp_path: Path) -> None:
    _, refused, _, _ = judged(tmp_path, TEXTS, {"0": ["5", "6"]}, lambda query, text: 0.5)
    assert refused["0"] == "no_negative"
    assert isinstance(Rejected("a", "b", "c"), Rejected)
