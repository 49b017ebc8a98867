"""Export of samples: in the layout of mmE5's files on the hub, or as a folder for `datasets`."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from mme5core.prompt_styles import render
from mme5core.schemas import SAMPLES
from mme5core.types import Content

PICTURE_TOKEN = "<|image_1|>\n"
# mmE5's columns; its synthetic files also have the column `modality`.
HUB = pa.schema(
    [
        ("qry", pa.string()),
        ("qry_image_path", pa.string()),
        ("pos_text", pa.string()),
        ("pos_image_path", pa.string()),
        ("neg_text", pa.string()),
        ("neg_image_path", pa.string()),
        ("modality", pa.string()),
    ]
)
HUB_FILES = {"classification": "Classification", "vqa": "VQA", "retrieval": "Retrieval", "fused": "Fused"}


def hub_row(row: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, bytes]]:
    """A row of SAMPLES in mmE5's layout, and its pictures by their paths.

    In that layout the instruction is part of the text, a text with a picture begins with Phi's picture token, and the
    negatives are Python lists written as text.
    """
    pictures: dict[str, bytes] = {}

    def side(content: Mapping[str, Any], instruction: str | None) -> tuple[str, str]:
        image = content["image"]
        path = ""
        if image is not None:
            path = picture_path(image["bytes"])
            pictures[path] = image["bytes"]
        text = render(
            Content(content["text"], None if image is None else image["bytes"]),
            instruction,
            style="mme5",
            image_prefix=PICTURE_TOKEN,
        )
        return text, path

    query, query_path = side(row["query"], row["instruction"])
    positive, positive_path = side(row["positive"], row["document_instruction"])
    negatives = [side(negative, row["document_instruction"]) for negative in row["negatives"]]
    return {
        "qry": query,
        "qry_image_path": query_path,
        "pos_text": positive,
        "pos_image_path": positive_path,
        "neg_text": str([text for text, _ in negatives]),
        "neg_image_path": str([path for _, path in negatives]),
        "modality": row["modality_combination"],
    }, pictures


def hub_sides(row: Mapping[str, str]) -> list[tuple[str, str]]:
    """(text, path of the picture or "") of query, positive and each negative of a row in mmE5's layout.

    >>> hub_sides({"qry": "a", "qry_image_path": "", "pos_text": "b", "pos_image_path": "x.jpg",
    ...            "neg_text": "['c']", "neg_image_path": "['']"})
    [('a', ''), ('b', 'x.jpg'), ('c', '')]
    """
    texts, paths = ast.literal_eval(row["neg_text"]), ast.literal_eval(row["neg_image_path"])
    return [
        (row["qry"], row["qry_image_path"]),
        (row["pos_text"], row["pos_image_path"]),
        *zip(texts, paths, strict=True),
    ]


def picture_path(data: bytes) -> str:
    """The path of a picture: named by the hash of its content, in one of 256 folders."""
    digest = hashlib.sha256(data).hexdigest()[:24]
    kind = "png" if data.startswith(b"\x89PNG") else "webp" if data[8:12] == b"WEBP" else "jpg"
    return f"images/{digest[:2]}/{digest}.{kind}"


def datasets_schema() -> pa.Schema:
    """SAMPLES, with the metadata by which `datasets` decodes its pictures."""
    features = {field.name: _feature(field.type) for field in SAMPLES}
    info = json.dumps({"info": {"features": features}})
    return SAMPLES.with_metadata({"huggingface": info})


def _feature(kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        if {field.name for field in kind} == {"bytes", "path"}:
            return {"_type": "Image"}
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    return {"_type": "Value", "dtype": {"double": "float64"}.get(str(kind), str(kind))}


def card(
    title: str, counts: Mapping[str, Mapping[str, int]], num_samples: int, teachers: Sequence[str], *, layout: str
) -> str:
    """The README.md of an exported folder: front matter for the hub, and a description of the samples.

    Args:
        counts: numbers of samples by "task", "modality_combination" and "language".
        layout: "hub" or "datasets".
    """
    languages = sorted(counts["language"])
    if layout == "hub":
        names = [HUB_FILES[task] for task in sorted(counts["task"])]
        configs = [f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in names]
    else:
        configs = ["- config_name: default\n  data_files: data/*.parquet"]
    lines = [
        "---",
        "language:",
        *(f"- {json.dumps(code)}" for code in languages),  # quoted: `no` is Norwegian
        "size_categories:",
        f"- {_size_category(num_samples)}",
        "tags:",
        "- synthetic",
        "configs:",
        *configs,
        "---",
        "",
        f"# {title}",
        "",
        f"{num_samples:,} training samples for a multilingual multimodal embedding model, written by "
        f"{', '.join(teachers) or 'unknown'} as in mmE5 (arXiv 2502.08468): one call describes the pictures,",
        "drafts a sample, evaluates it and revises it; these are the revised samples.",
        "",
    ]
    for name, by_label in counts.items():
        lines += [f"| {name.replace('_', ' ')} | samples |", "|---|---|"]
        lines += [f"| {label} | {count:,} |" for label, count in sorted(by_label.items(), key=lambda pair: -pair[1])]
        lines.append("")
    return "\n".join(lines)


def _size_category(count: int) -> str:
    for limit, name in (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
    ):
        if count < limit:
            return name
    return "10M<n<100M"
