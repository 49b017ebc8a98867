"""`judge` refuses what does not fit before it starts Ray, in one line that names it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.errors import InputError
from mme5core.sample_readers.ours import to_struct
from mme5core.schemas import NEIGHBOURS
from mme5core.types import Content
from rayjobs.command.load import load_config as load_verb
from rayjobs.judge.config import JudgeConfig
from rayjobs.judge.job import run
from tests.core.backbones.families import build
from tests.jobs.every_job import every_job


def samples(folder: Path) -> str:
    rows = [
        {
            "id": str(n),
            "query": to_struct(Content(f"q{n}")),
            "positive": to_struct(Content(f"p{n}")),
            "negatives": [],
            "instruction": None,
            "document_instruction": None,
        }
        for n in range(3)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return str(folder)


def neighbours(folder: Path, *pairs: tuple[str, str]) -> str:
    folder.mkdir()
    rows = [{"query_id": q, "candidate_id": c, "rank": 1, "score": 0.5, "source": "nearest"} for q, c in pairs]
    pq.write_table(pa.Table.from_pylist(rows, NEIGHBOURS), folder / "a.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["neighbours=NEAR"], "'judge.model' is required"),
        (["neighbours=NEAR", "judge.model=no/such/folder"], "judge.model: no model at 'no/such/folder'"),
        (["neighbours=OTHERS", "judge.model=MODEL"], "none of its rows is of two samples of the input (2 name others)"),
        (["neighbours=EMPTY", "judge.model=MODEL"], "there is no row in it that names two samples"),
        (["neighbours=SAMPLES", "judge.model=MODEL"], "has no column 'query_id'"),
        (["neighbours=nowhere", "judge.model=MODEL"], "neighbours 'nowhere': no such file or folder"),
        (["neighbours=NEAR", "judge.model=MODEL", "judge.adapter=nowhere"], "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(more: list[str], message: str, tmp_path: Path) -> None:
    places = {
        "SAMPLES": samples(tmp_path / "samples"),
        "NEAR": neighbours(tmp_path / "near", ("0", "1")),
        "EMPTY": neighbours(tmp_path / "empty"),
        "OTHERS": neighbours(tmp_path / "others", ("0", "x"), ("y", "1")),
        "MODEL": str(build("llava", tmp_path / "model")),
    }
    more = ["input=SAMPLES", *more, f"output={tmp_path / 'out'}"]
    for name, place in places.items():
        more = [argument.replace(f"={name}", f"={place}") for argument in more]
    config = load_verb(every_job()["judge"], "", None, more)
    assert isinstance(config, JudgeConfig)
    with pytest.raises(InputError) as caught:
        run(config)
    assert message in str(caught.value) and "\n" not in str(caught.value)
