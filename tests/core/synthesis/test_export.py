"""Tests of samples in the layouts of others: they read back as what they were."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
import yaml

from mme5core.prompt_styles import render
from mme5core.schemas import SAMPLES
from mme5core.synthesis.export import HUB, card, datasets_schema, hub_row, hub_sides, picture_path
from mme5core.types import Content
from tests.core.synthesis.rows import PICTURES, content, sample_row

ROWS = [
    sample_row(),
    sample_row(1, modality_combination="T2IT", query=content("la gatta")),
    sample_row(2, modality_combination="I2I", query=content(None, "q"), positive=content(None, "p"),
               negatives=[content(None, "n"), content(None, "q")]),
    sample_row(3, modality_combination="I2T", query=content(None, "q"), positive=content('detto "il gatto"\n'),
               negatives=[content("l'altro\\"), content("[]")], document_instruction=None),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["modality_combination"]))
def test_a_row_in_mme5s_layout_reads_back_as_the_prompts_that_training_would_make(row: dict[str, Any]) -> None:
    hub, pictures = hub_row(row)
    assert list(hub) == HUB.names and all(isinstance(value, str) for value in hub.values())
    sides = [(row["query"], row["instruction"])]
    sides += [(side, row["document_instruction"]) for side in (row["positive"], *row["negatives"])]
    for (text, path), (side, instruction) in zip(hub_sides(hub), sides, strict=True):
        data = None if side["image"] is None else side["image"]["bytes"]
        prompt = render(Content(side["text"], data), instruction, style="mme5", image_prefix="")
        assert text == ("<|image_1|>\n" if data else "") + prompt
        assert pictures.get(path) == data
    # Their loader reads these two with eval.
    assert len(ast.literal_eval(hub["neg_text"])) == len(ast.literal_eval(hub["neg_image_path"]))


def test_a_picture_has_one_path_wherever_it_stands() -> None:
    assert picture_path(PICTURES["q"]) == picture_path(bytes(PICTURES["q"])) != picture_path(PICTURES["p"])
    assert picture_path(PICTURES["q"]).endswith(".jpg")


def test_the_schema_tells_datasets_which_columns_are_pictures() -> None:
    schema = datasets_schema()
    assert schema.equals(SAMPLES)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == SAMPLES.names
    image = {"_type": "Image"}
    text = {"_type": "Value", "dtype": "string"}
    assert features["query"] == {"text": text, "image": image}
    assert features["negatives"] == {"_type": "List", "feature": {"text": text, "image": image}}
    assert features["usd"] == {"_type": "Value", "dtype": "float64"}


def test_the_card_is_of_the_form_that_the_hub_reads() -> None:
    counts = {"task": {"vqa": 2, "retrieval": 5}, "modality_combination": {"IT2T": 7}, "language": {"no": 3, "it": 4}}
    text = card("Mine", counts, 7, ["gpt-4o"], layout="hub")
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["language"] == ["it", "no"] and found["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in found["configs"]] == ["Retrieval", "VQA"]
    assert "7 training samples" in body and "gpt-4o" in body and "| retrieval | 5 |" in body
