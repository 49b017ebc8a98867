"""The prompt to the teacher: one call that describes, drafts, evaluates, improves and revises."""

from __future__ import annotations

import json
from typing import Any

from mme5core.languages import LANGUAGES
from mme5core.synthesis.plan import PlannedSample

ASPECTS = ("general", "objects", "context", "brainstorm")
CRITERIA = ("relevance", "plausibility", "clarity", "diversity")

_TASKS = {
    "classification": (
        "a classification sample: the instruction names what to tell apart (a kind, a scene, a style, a mood, ...), "
        "the positive is the right label, each hard negative a misleading label that someone could fall for"
    ),
    "vqa": (
        "a visual question answering sample: the query is a question about the picture, the positive its short "
        "right answer, each hard negative a wrong answer that would be right for a similar picture"
    ),
    "retrieval": (
        "a retrieval sample: the instruction says what to find and how it relates to the query, the positive is "
        "what should be found, each hard negative something close to it that should not"
    ),
    # GME (arXiv 2412.16855): the subject of a text query is removed from it and shown in the picture instead.
    "fused": (
        "a retrieval sample whose query needs its picture: first think of a question in words alone that the positive "
        "answers, about something that the picture shows; then rewrite it so that this thing is not named but "
        "pointed at ('this bridge', 'the person on the left'), and nobody could answer it without the picture"
    ),
}
LOWEST_SCORE, HIGHEST_SCORE = 1, 5
COMPLETION_TOKENS, COMPLETION_TOKENS_PER_PICTURE = 550, 180

_SYSTEM = (
    "You write training samples for a multilingual multimodal embedding model. You answer with one JSON object "
    "and nothing else."
)


def build_prompt(plan: PlannedSample, *, num_negatives: int) -> tuple[str, str]:
    """System and user text for one sample; the pictures follow the user text in the plan's order."""
    language = f"{LANGUAGES[plan.language]} ({plan.language})"
    query_has_text, document_has_text = "T" in plan.query_modality, "T" in plan.document_modality
    lines = [
        f"Task: {plan.task}",
        f"Modality combination: {plan.modality_combination}",
        f"Language: {language}",
        f"Hard negatives: {num_negatives}",
        "",
        f"Write {_TASKS[plan.task]}.",
        "",
        "Pictures, in order: " + _name_pictures(plan) + ".",
        "",
        "Work through these steps, each into its field:",
        "1. images: describe each picture in four aspects: general (what it shows as a whole), objects (its "
        "details), context (background and setting), brainstorm (what could link it to a text for this task).",
        f"2. draft: {_fields(plan, num_negatives)}",
        "3. evaluation: judge your draft, each time in a sentence (judgement) and with a score from "
        f"{LOWEST_SCORE} (poor) to {HIGHEST_SCORE} (excellent): relevance (do the texts fit their pictures?), "
        "plausibility (are the hard negatives hard, and yet wrong?), clarity (is the instruction unambiguous?), "
        "diversity (is it more than the obvious?).",
        "4. improvements: what to change, in a sentence or two.",
        "5. revision: the same fields as the draft, improved.",
        "",
        "Rules: the instruction is always in English, one sentence, and says nothing of the answer.",
    ]
    if query_has_text or document_has_text:
        lines.append(f"Every other text of draft and revision is in {language}, natural, and without labels or markup.")
    if document_has_text:
        lines.append("No hard negative may equal the positive or be right as well.")
    return _SYSTEM, "\n".join(lines)


def answer_schema(plan: PlannedSample) -> dict[str, Any]:
    """JSON schema of the answer, in the strict subset that servers support."""
    text = {"type": "string"}
    fields: dict[str, Any] = {"instruction": text}
    if "T" in plan.query_modality:
        fields["query"] = text
    if "T" in plan.document_modality:
        fields |= {"positive": text, "negatives": {"type": "array", "items": text}}
    sample = _object(fields)
    scores = list(range(LOWEST_SCORE, HIGHEST_SCORE + 1))
    judged = _object({"judgement": text, "score": {"type": "integer", "enum": scores}})
    return _object(
        {
            "images": {"type": "array", "items": _object(dict.fromkeys(ASPECTS, text))},
            "draft": sample,
            "evaluation": _object(dict.fromkeys(CRITERIA, judged)),
            "improvements": text,
            "revision": sample,
        }
    )


def schema_in_words(plan: PlannedSample) -> str:
    """The form of the answer as an example, for servers that do not accept a schema.

    >>> schema_in_words(PlannedSample("s", "retrieval", "T2I", "it", None, "a")).splitlines()[0]
    'Answer with one JSON object of this form, and nothing else:'
    """
    example = json.dumps(_example(answer_schema(plan)), indent=1)
    return f"Answer with one JSON object of this form, and nothing else:\n{example}"


def _example(schema: dict[str, Any]) -> Any:
    if schema["type"] == "object":
        return {name: _example(field) for name, field in schema["properties"].items()}
    if schema["type"] == "array":
        return [_example(schema["items"])]
    return "..." if schema["type"] == "string" else HIGHEST_SCORE


def expected_completion_tokens(num_pictures: int) -> int:
    """Expected tokens of an answer, which describes every picture, writes its sample twice and evaluates it."""
    return COMPLETION_TOKENS + COMPLETION_TOKENS_PER_PICTURE * num_pictures


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _name_pictures(plan: PlannedSample) -> str:
    roles: dict[str, list[str]] = {image: [] for image in plan.image_ids}
    for image, role in (
        (plan.query_image, "the query's picture"),
        (plan.positive_image, "the positive's picture"),
        *((image, f"the picture of hard negative {n + 1}") for n, image in enumerate(plan.negative_images)),
    ):
        if image:
            roles[image].append(role)
    return ", ".join(f"{number}. {' and '.join(names)}" for number, names in enumerate(roles.values(), start=1))


def _fields(plan: PlannedSample, num_negatives: int) -> str:
    fields = ["instruction (what the embedding model is to do with the query)"]
    if "T" in plan.query_modality:
        beside = " that goes with the query's picture" if plan.query_image else ""
        fields.append(f"query (a text{beside})")
    if "T" in plan.document_modality:
        beside, each = (" that goes with its picture", ", each with its picture") if plan.positive_image else ("", "")
        fields.append(f"positive (a text{beside})")
        fields.append(f"negatives (a list of {num_negatives} texts{each})")
    else:
        fields.append("and nothing for the documents, which are the pictures themselves")
    return "; ".join(fields) + "."
