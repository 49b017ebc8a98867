"""Tests of the report: numbers where they belong, all text escaped, nothing needed beside the page."""

from __future__ import annotations

import base64
import html as html_lib
import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from mme5core.evaluation.report import COLUMNS, ScoreSet, choose_examples, html, table
from mme5core.evaluation.retrieval import NOT_RANKED, Ranking, Scores
from mme5core.types import Content, EvalQuery

EVIL = "<script>alert('x')</script>&\""


def scores_of(recalls: dict[str, float], rankings: list[Ranking] | None = None) -> Scores:
    by_language = {code: dict.fromkeys(COLUMNS, value) for code, value in recalls.items()}
    mean = dict.fromkeys(COLUMNS, sum(recalls.values()) / len(recalls))
    return Scores(by_language, mean, 40, 1234, rankings or [])


def set_of(name: str, recalls: dict[str, float], rankings: list[Ranking] | None = None, model: str = "m") -> ScoreSet:
    return ScoreSet(name, model, "tiny", scores_of(recalls, rankings))


def ranking_of(number: int, language: str = "it", rank: int = 1, text: str = "gatto") -> Ranking:
    return Ranking(EvalQuery(f"q{number}", Content(text), None, {"c0": 1.0}, language=language), rank, ["c1", "c0"])


def chart_of(page: str) -> ElementTree.Element:
    found = re.search(r"<svg.*?</svg>", page, re.DOTALL)
    assert found
    return ElementTree.fromstring(found[0])


def test_the_table_has_a_row_a_language_and_a_group_of_columns_a_set() -> None:
    text = table([set_of("trained", {"it": 0.5, "ru": 0.25}), set_of("base", {"it": 0.125})])
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["trained", "base"]
    assert rows[1] == [*COLUMNS, *COLUMNS]
    assert rows[2:] == [
        ["Italian", "(it)", *["0.500"] * 4, *["0.125"] * 4],
        ["Russian", "(ru)", *["0.250"] * 4, *["-"] * 4],
        ["mean", *["0.375"] * 4, *["0.125"] * 4],
    ]


@pytest.mark.parametrize("code", ["zh", "xx", "a-data-set-with-a-long-name"])
def test_the_columns_of_the_table_stand_below_each_other(code: str) -> None:
    lines = table([set_of("trained", {code: 0.5}), set_of("base", {code: 0.125})]).splitlines()[1:]
    ends = [[found.end() for found in re.finditer(r"(\d\.\d{3}|recall@\d+|mrr)(?= |$)", line)] for line in lines]
    assert len(ends[0]) == 8
    assert ends == [ends[0]] * len(ends)


def test_every_text_from_outside_is_escaped() -> None:
    rankings = [ranking_of(0, EVIL, 3, EVIL)]
    sets = [set_of(EVIL, {EVIL: 0.5}, rankings, model=EVIL), set_of("base", {EVIL: 0.25})]
    page = html(EVIL, sets, {"c0": Content(EVIL), "c1": Content(EVIL)}, num_examples=1)
    assert "<script" not in page
    assert html_lib.unescape(page).count(EVIL) >= 8


def test_the_chart_is_well_formed_with_bars_as_high_as_their_recall() -> None:
    sets = [set_of("trained", {"it": 1.0, "ru": 0.5}), set_of("base", {"it": 0.25})]
    svg = chart_of(html("Scores", sets, {}, num_examples=0))
    bars = {bar.findtext("title"): float(bar.attrib["height"]) for bar in svg.iter("rect")}
    assert set(bars) == {"it: 1.000", "ru: 0.500", "mean: 0.750", "it: 0.250", "mean: 0.250"}
    for title, height in bars.items():
        assert height == pytest.approx(bars["it: 1.000"] * float(str(title).split()[1]), abs=0.1)
    # All bars stand on one line.
    feet = {round(float(bar.attrib["y"]) + float(bar.attrib["height"]), 0) for bar in svg.iter("rect")}
    assert len(feet) == 1


def test_the_page_names_languages_counts_and_ranks() -> None:
    rankings = [ranking_of(0, "it", 1), ranking_of(1, "it", 1042)]
    page = html("Scores", [set_of("trained", {"it": 0.5}, rankings)], {}, num_examples=2)
    for text in ("Italian (it)", "40 queries, 1,234 candidates", "0.500", "found first", "rank 1,042"):
        assert text in page


def test_arabic_runs_from_right_to_left_and_italian_does_not() -> None:
    page = html("Scores", [set_of("s", {"ar": 1.0}, [ranking_of(0, "ar")])], {}, num_examples=1)
    assert 'dir="rtl" lang="ar"' in page
    page = html("Scores", [set_of("s", {"it": 1.0}, [ranking_of(0, "it")])], {}, num_examples=1)
    assert 'dir="ltr" lang="it"' in page


def test_pictures_lie_in_the_page_itself_made_small_and_the_right_one_is_marked() -> None:
    picture = Image.new("RGB", (300, 150), (200, 0, 0))
    contents = {"c0": Content(image=picture), "c1": Content(image=b"<html>")}
    page = html("Scores", [set_of("s", {"it": 1.0}, [ranking_of(0)])], contents, num_examples=1)
    sources = re.findall(r'<img class="([^"]*)" src="([^"]*)"', page)
    assert [name for name, _ in sources] == ["picture", "picture right"]
    for _, source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (96, 48)
    assert "http://" not in page and "https://" not in page


def test_the_callers_open_picture_keeps_its_size() -> None:
    picture = Image.new("RGB", (300, 150))
    html("s", [set_of("s", {"it": 1.0}, [ranking_of(0)])], {"c0": Content(image=picture)}, num_examples=1)
    assert picture.size == (300, 150)


def test_examples_go_through_the_languages_from_best_to_worst() -> None:
    rankings = [ranking_of(number, language, number + 1) for number in range(20) for language in ("it", "ru")]
    chosen = choose_examples(rankings, 8)
    assert [ranking.query.language for ranking in chosen] == ["it", "ru"] * 4
    of_italian = [ranking.rank for ranking in chosen if ranking.query.language == "it"]
    assert of_italian == [3, 8, 13, 18]


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 100])
def test_no_example_is_shown_twice_also_where_languages_differ_in_size(count: int) -> None:
    rankings = [ranking_of(0, "it"), *(ranking_of(number, "ru", number) for number in range(1, 6))]
    chosen = [ranking.query.id for ranking in choose_examples(rankings, count)]
    assert len(set(chosen)) == len(chosen) == min(count, 6)


def test_no_rankings_are_no_examples() -> None:
    assert choose_examples([], 5) == []
    assert "Rankings of" not in html("Scores", [set_of("s", {"it": 1.0})], {}, num_examples=5)


def test_a_positive_that_is_not_among_the_ranked_is_shown_as_such() -> None:
    query = EvalQuery("q", Content("a cat"), None, {"p": 1.0}, language="en")
    mean = dict.fromkeys(COLUMNS, 0.0)
    scores = Scores({"en": mean}, mean, 1, 2, [Ranking(query, NOT_RANKED, ["c"])])
    page = html("t", [ScoreSet("s", "m", "b", scores)], {"c": Content("a dog")}, num_examples=1)
    assert "not among the ranked" in page
