"""Tests of the page of samples: what a model wrote stays text, and draft and revision can be told apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from mme5core.synthesis.gallery import difference, page, prompt_page
from mme5core.synthesis.plan import PlannedSample
from tests.core.synthesis.rows import PICTURES, content, sample_row


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of `del`, `ins` and table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"del": [], "ins": [], "td": []}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for tag in self.texts:
            if tag in self._open:
                self.texts[tag].append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_a_card_shows_pictures_texts_and_what_the_revision_changed() -> None:
    html = page("mine", [sample_row()], {})
    elements = Elements(html)
    (card,) = elements.all("article")
    assert card == {"data-task": "retrieval", "data-modality_combination": "IT2IT", "data-language": "it"}
    images = elements.all("img")
    assert [image["alt"] for image in images] == ["query", "positive", "hard negative 1"]
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in images)
    assert "pet" in elements.texts["del"] and "animal" in elements.texts["ins"]
    assert "il " in elements.texts["ins"]
    assert "relevance 4, clarity 4" in html and "be precise" in html and "picture p" in html
    assert 'src="http' not in html and 'href="http' not in html  # nothing beside it is needed


def test_what_a_model_wrote_is_text_and_no_markup() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    row = sample_row(
        id=evil, query=content(evil, "q"), positive=content(evil, "p"), instruction=evil, language=evil, teacher=evil,
        raw=json.dumps({"draft": {"query": "x"}, "improvements": evil, "images": [{"general": evil}]}),
    )  # fmt: skip
    html = page(evil, [row], {"not_json": [{"id": evil, "detail": evil}]})
    elements = Elements(html)
    assert len(elements.all("script")) == 1  # our own
    assert all("onerror" not in attributes for _, attributes in elements.found)
    assert len(elements.all("img")) == 3


@pytest.mark.parametrize(("language", "direction"), [("ar", "rtl"), ("he", "rtl"), ("ur", "rtl"), ("it", "ltr")])
def test_texts_run_in_the_direction_of_their_script_and_instructions_in_that_of_english(
    language: str, direction: str
) -> None:
    cells = [c for c in Elements(page("x", [sample_row(language=language)], {})).all("td") if "lang" in c]
    assert [(cell["lang"], cell["dir"]) for cell in cells] == [("en", "ltr")] + 3 * [(language, direction)]


@pytest.mark.parametrize("raw", ["", "no JSON", "[1, 2]", '{"images": 3, "draft": [], "evaluation": "good"}'])
def test_an_answer_of_another_form_still_shows_its_sample(raw: str) -> None:
    assert "gatto nero" in page("x", [sample_row(raw=raw)], {}).replace("</ins>", "").replace("<ins>", "")


def test_refusals_have_a_section_for_each_reason() -> None:
    html = page("x", [], {"cut_off": [{"id": "a-0", "detail": "after 7"}], "not_json": [{"id": "b-0", "detail": "?"}]})
    assert [section["id"] for section in Elements(html).all("section")] == ["refused-cut_off", "refused-not_json"]
    assert 'href="#refused-cut_off"' in html and "after 7" in html


@pytest.mark.parametrize(
    ("before", "after"), [("", "a b"), ("a b", ""), ("a, b c", "a c, d"), ("你好世界", "你们好"), ("  a", "a  b\n")]
)
def test_a_difference_holds_both_texts(before: str, after: str) -> None:
    runs = difference(before, after)
    assert "".join(text for text, kind in runs if kind != "gone").strip() == after.strip()
    gone_or_same = "".join(text for text, kind in runs if kind != "new")
    assert gone_or_same.split() == before.split() or "".join(gone_or_same.split()) == "".join(before.split())


def test_prompts_are_shown_whole_with_their_pictures() -> None:
    plan = PlannedSample("s", "retrieval", "I2T", "it", "q")
    html = prompt_page("Prompts", [(plan, "system <b>", "user & more", [PICTURES["q"]])])
    assert "system &lt;b&gt;" in html and "user &amp; more" in html and len(Elements(html).all("img")) == 1
