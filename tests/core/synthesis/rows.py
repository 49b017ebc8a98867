"""Rows of SAMPLES as synth writes them, made by hand."""

from __future__ import annotations

import json
from typing import Any

from PIL import Image

from mme5core.images import to_jpeg

PICTURES = {
    name: to_jpeg(Image.new("RGB", (40, 30), (60 * number, 200 - 40 * number, 90))) for number, name in enumerate("qpn")
}


def content(text: str | None, image: str | None = None) -> dict[str, Any]:
    return {"text": text, "image": None if image is None else {"bytes": PICTURES[image], "path": image}}


def sample_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """An IT2IT sample with one hard negative."""
    draft = {"instruction": "Find the pet.", "query": "gatto", "positive": "gatto nero", "negatives": ["cane"]}
    scores = {name: {"judgement": f"{name} is fine", "score": 4} for name in ("relevance", "clarity")}
    answer = {
        "images": [{"general": f"picture {name}", "objects": "", "context": "", "brainstorm": ""} for name in "qpn"],
        "draft": draft,
        "evaluation": scores,
        "improvements": "be precise",
        "revision": {},
    }
    return {
        "id": f"s{number}",
        "task": "retrieval",
        "modality_combination": "IT2IT",
        "language": "it",
        "instruction": "Find the animal.",
        "document_instruction": "Represent the given image together with its text:",
        "query": content("il gatto", "q"),
        "positive": content("gatto nero", "p"),
        "negatives": [content("cane e 'lupo'", "n")],
        "image_ids": ["q", "p", "n"],
        "raw": json.dumps(answer),
        "prompt_sha256": "0" * 64,
        "teacher": "demo",
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "usd": 0.001,
        "seed": 7,
    } | changes
