"""A self-contained HTML page of samples with their pictures, the changes from draft to revision, and refusals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from jinja2 import Environment, PackageLoader

from mme5core.asking.json_in_text import read_json
from mme5core.images import thumbnail_url
from mme5core.languages import RIGHT_TO_LEFT, language_name
from mme5core.synthesis.plan import PlannedSample
from mme5core.synthesis.prompts import ASPECTS, CRITERIA
from mme5core.synthesis.scores import self_evaluation

PICTURE_SIDE = 240
_FIELDS = ("instruction", "query", "positive", "negatives")

Run = tuple[str, str]
"""A part of a text, and "same", "gone" or "new": kept, deleted or inserted by the revision."""


def page(title: str, samples: Sequence[Mapping[str, Any]], refused: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    """The page: samples with filters for task, combination and language, then refusals by reason.

    All text is escaped, because it comes from a model.

    Args:
        samples: rows of SAMPLES.
        refused: rows of QUARANTINE by reason.
    """
    cards = [_card(row) for row in samples]
    filters = {
        name: sorted({str(card[name]) for card in cards}) for name in ("task", "modality_combination", "language")
    }
    return _render(
        "gallery.html",
        title=title,
        cards=cards,
        filters=filters,
        language_names={code: language_name(code) for code in filters["language"]},
        refused=refused,
    )


def prompt_page(title: str, prompts: Sequence[tuple[PlannedSample, str, str, Sequence[bytes]]]) -> str:
    """A page of whole prompts with their pictures.

    Args:
        prompts: (plan, system text, user text, encoded pictures) of each.
    """
    return _render(
        "prompts.html",
        title=title,
        prompts=[
            {
                "id": plan.id,
                "system": system,
                "user": user,
                "pictures": [thumbnail_url(picture, PICTURE_SIDE) for picture in pictures],
            }
            for plan, system, user, pictures in prompts
        ],
    )


def difference(before: str, after: str) -> list[Run]:
    """The deleted and inserted parts of a text, word by word.

    >>> difference("a red cat", "a cat sleeps")
    [('a ', 'same'), ('red ', 'gone'), ('cat ', 'same'), ('sleeps', 'new')]
    """
    old, new = _words(before), _words(after)
    runs: list[Run] = []
    matcher = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            runs.append(("".join(new[k:m]), "same"))
            continue
        if j > i:
            runs.append(("".join(old[i:j]), "gone"))
        if m > k:
            runs.append(("".join(new[k:m]), "new"))
    return runs


def _words(text: str) -> list[str]:
    """Words and signs, each with the space after it; single characters of scripts without spaces."""
    return re.findall(r"(?:[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s]|^)\s*", text)


def _card(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = _answer(row["raw"])
    return {
        "id": row["id"],
        "task": row["task"],
        "modality_combination": row["modality_combination"],
        "language": row["language"],
        "direction": "rtl" if row["language"] in RIGHT_TO_LEFT else "ltr",
        "pictures": _pictures(row, answer),
        "fields": _fields(row, answer),
        "scores": self_evaluation(answer),
        "judgements": _judgements(answer),
        "improvements": _text(answer.get("improvements")),
        "teacher": row["teacher"],
        "tokens": (row["prompt_tokens"] or 0, row["completion_tokens"] or 0),
        "usd": row.get("usd"),
    }


def _answer(raw: str) -> dict[str, Any]:
    try:
        answer, _ = read_json(raw)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _pictures(row: Mapping[str, Any], answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The distinct pictures, with their roles and the teacher's descriptions."""
    pictures: dict[str, dict[str, Any]] = {}
    roles = [("query", row["query"]), ("positive", row["positive"])]
    roles += [(f"hard negative {n}", negative) for n, negative in enumerate(row["negatives"], start=1)]
    for role, content in roles:
        image = content["image"]
        if image is not None:
            entry = pictures.setdefault(
                image["path"], {"url": thumbnail_url(image["bytes"], PICTURE_SIDE), "roles": [], "aspects": []}
            )
            entry["roles"].append(role)
    described = answer.get("images")
    described = described if isinstance(described, list) else []
    for image_id, aspects in zip(row["image_ids"], described, strict=False):
        if image_id in pictures and isinstance(aspects, dict):
            pictures[image_id]["aspects"] = [(name, _text(aspects.get(name))) for name in ASPECTS]
    return list(pictures.values())


def _fields(row: Mapping[str, Any], answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The texts of the sample, each with the changes from the draft to the kept text."""
    draft = answer.get("draft")
    draft = draft if isinstance(draft, dict) else {}
    kept = {"instruction": row["instruction"], "query": row["query"]["text"], "positive": row["positive"]["text"]}
    negatives = [negative["text"] for negative in row["negatives"] if negative["text"]]
    drafted = draft.get("negatives")
    drafted = [_text(negative) for negative in drafted] if isinstance(drafted, list) else []
    rows = [(name, _text(draft.get(name)), kept[name]) for name in _FIELDS[:3]]
    rows += [
        (f"hard negative {n + 1}", drafted[n] if n < len(drafted) else "", text) for n, text in enumerate(negatives)
    ]
    return [
        {"name": name, "runs": difference(before, after), "is_english": name == "instruction"}
        for name, before, after in rows
        if after
    ]


def _judgements(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    evaluation = answer.get("evaluation")
    evaluation = evaluation if isinstance(evaluation, dict) else {}
    judged = ((name, evaluation.get(name)) for name in CRITERIA)
    return [(name, _text(judgement.get("judgement"))) for name, judgement in judged if isinstance(judgement, dict)]


def _text(field: Any) -> str:
    """The field of an answer if it is a text, else an empty text."""
    return field if isinstance(field, str) else ""


def _render(template: str, **variables: Any) -> str:
    environment = Environment(loader=PackageLoader("mme5core.synthesis"), autoescape=True)
    page = environment.get_template(template).render(**variables)
    return page.encode(errors="replace").decode()  # an answer's JSON may contain a lone surrogate
