"""--dry-run finds what can be known to be wrong without starting anything."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayjobs.config import ConfigError, TrainConfig
from rayjobs.dry_run import describe


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that passes for a model until it is loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "mllama", "text_config": {"hidden_size": 8}}))
    for name in ("tokenizer.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def samples(folder: Path, count: int, **renamed: str) -> Path:
    content = {"text": "a", "image": None}
    row = {"id": "1", "query": content, "positive": content, "negatives": [content]}
    row |= {"instruction": "", "document_instruction": ""}
    named = {renamed.get(name, name): value for name, value in row.items()}
    pq.write_table(pa.Table.from_pylist([named] * count), folder / "samples.parquet")
    return folder / "samples.parquet"


def config(file: Path, model: Path, /, **changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"input": str(file), "model": str(model), "batch_size": 8} | changes)


def test_a_training_is_told_with_its_rows_and_steps(tmp_path: Path, model: Path) -> None:
    text = describe("train", config(samples(tmp_path, 40), model, num_epochs=2))
    assert "40 samples before any is refused; about 10 steps" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 64}, "batch_size=64 is larger than the data: 40 samples"),
        ({"num_workers": 9}, "batch_size=8 leaves some of num_workers=9 without a row"),
        ({"model": "/no/model"}, "no model at '/no/model'"),
        ({"loss": {"matryoshka_dims": [9]}}, "loss.matryoshka_dims: 9 does not fit vectors of width 8"),
    ],
)
def test_a_training_that_cannot_begin_is_refused(
    changes: dict[str, object], said: str, tmp_path: Path, model: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        describe("train", config(samples(tmp_path, 40), model, **changes))


def test_a_file_without_a_column_of_samples_is_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ConfigError, match=r"samples.parquet: no column 'positive'; it has id, query, pos, negatives"):
        describe("train", config(samples(tmp_path, 40, positive="pos"), model))
