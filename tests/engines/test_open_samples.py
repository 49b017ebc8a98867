"""What `synth run` writes, opened by `datasets` itself: equal to the samples it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.schemas import SAMPLES
from mme5core.synthesis.export import hub_row, hub_sides
from rayjobs.synth.config import ExportConfig
from rayjobs.synth.export import run
from tests.core.synthesis.rows import PICTURES, content, sample_row

pytestmark = pytest.mark.slow
ROWS = [
    sample_row(0),
    sample_row(1, task="vqa", modality_combination="IT2T", positive=content("gatto"),
               negatives=[content("un\n'lupo'")]),
    sample_row(2, modality_combination="T2I", query=content("il gatto"), positive=content(None, "p"),
               negatives=[content(None, "n")]),
]  # fmt: skip


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS, SAMPLES), folder / "part-00000.parquet")
    return folder


def opened(folder: Path, name: str, cache: Path) -> Any:
    import datasets

    return datasets.load_dataset(str(folder), name, split="train", cache_dir=str(cache))


def test_a_datasets_folder_reads_back_equal_with_pictures_as_pictures(samples: Path, tmp_path: Path) -> None:
    import datasets

    run(ExportConfig(input=str(samples), output=str(tmp_path / "out"), rows_per_file=2))
    assert len(list((tmp_path / "out" / "data").iterdir())) == 2
    found = opened(tmp_path / "out", "default", tmp_path / "cache")
    shown = found[0]
    assert isinstance(shown["query"]["image"], Image.Image) and shown["query"]["image"].size == (40, 30)
    assert shown["negatives"][0]["image"].size == (40, 30)
    raw = found.with_format("arrow")[:].cast(SAMPLES) if hasattr(datasets, "Dataset") else None
    assert raw is not None and raw.to_pylist() == ROWS


def test_mme5s_layout_reads_back_equal_by_task_and_its_pictures_lie_beside(samples: Path, tmp_path: Path) -> None:
    run(ExportConfig(input=str(samples), output=str(tmp_path / "out"), layout="hub"))
    for name, rows in (("Retrieval", [ROWS[0], ROWS[2]]), ("VQA", [ROWS[1]])):
        found = list(opened(tmp_path / "out", name, tmp_path / "cache"))
        assert found == [hub_row(row)[0] for row in rows]
        for hub, row in zip(found, rows, strict=True):
            paths = [path for _, path in hub_sides(hub)]
            sides = [row["query"], row["positive"], *row["negatives"]]
            for path, side in zip(paths, sides, strict=True):
                data = (tmp_path / "out" / path).read_bytes() if path else None
                assert data == (PICTURES[side["image"]["path"]] if side["image"] else None)
