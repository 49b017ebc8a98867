"""`mine export`: which samples become negatives of which, in three layouts, and what a layout cannot hold."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.sample_readers import read_samples
from mme5core.sample_readers.ours import to_struct
from mme5core.schemas import NEIGHBOURS
from mme5core.types import Content, Sample
from rayjobs.command.load import load_config as load_verb
from rayjobs.command.outcome import Outcome
from tests.core.contents import picture
from tests.jobs.every_job import every_job

NEAR = {"0": ["0", "3", "1", "2", "gone"], "1": ["0"], "2": []}


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=[False, True], ids=["texts", "pictures"])
def positives(request: Any) -> list[Content]:
    return [
        Content("a", png(1) if request.param else None),
        Content("b", png(2) if request.param else None),
        Content("c"),
        Content("a", png(1) if request.param else None),  # the positive of the first again
    ]


def export(folder: Path, positives: list[Content], *more: str) -> Outcome:
    rows = [
        {
            "id": str(n),
            "query": to_struct(Content(f"q{n}")),
            "positive": to_struct(positive),
            "negatives": [],
            "instruction": "Find:",
            "document_instruction": None,
            "task": "retrieval",
        }
        for n, positive in enumerate(positives)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    neighbours = [
        {"query_id": query, "candidate_id": candidate, "rank": rank, "score": 0.5, "source": "nearest"}
        for query, candidates in NEAR.items()
        for rank, candidate in enumerate(candidates, 1)
    ]
    pq.write_table(pa.Table.from_pylist(neighbours, NEIGHBOURS), folder / "near.parquet")
    job = every_job()["mine"]
    arguments = [f"samples={folder}/samples.parquet", f"neighbours={folder}/near.parquet", f"output={folder}/out"]
    return job.verbs["export"].run(load_verb(job, "export", None, [*arguments, *more]))


def test_negatives_are_positives_of_others_nearest_first_and_never_the_own(
    positives: list[Content], tmp_path: Path
) -> None:
    outcome = export(tmp_path, positives)
    assert outcome.counters == {"read": 4, "kept": 2, "refused": {"no_candidate": 2}, "pending": 0}
    samples = [
        sample for sample in read_samples(tmp_path / "out" / "train-00000.parquet") if isinstance(sample, Sample)
    ]
    assert [[negative.text for negative in sample.negatives] for sample in samples] == [["b", "c"], ["a"]]
    assert samples[0].query == Content("q0") and samples[0].instruction == "Find:"


def test_mme5s_layout_holds_lists_as_text_and_pictures_as_files(positives: list[Content], tmp_path: Path) -> None:
    export(tmp_path, positives, "layout=mme5", "num_negatives=1")
    row = pq.read_table(tmp_path / "out" / "train-00000.parquet").to_pylist()[0]
    assert row["qry"] == "Find: q0\n" and ast.literal_eval(row["neg_text"])[0].endswith("b")
    for path in (row["pos_image_path"], *ast.literal_eval(row["neg_image_path"])):
        assert not path or (tmp_path / "out" / path).is_file()
    assert bool(row["pos_image_path"]) == bool(positives[0].images)


def test_tuples_have_exactly_so_many_negatives(positives: list[Content], tmp_path: Path) -> None:
    outcome = export(tmp_path, positives, "layout=tuples", "num_negatives=2")
    assert outcome.counters["refused"] == {"no_candidate": 2, "not_of_the_layout": 1}
    (row,) = pq.read_table(tmp_path / "out" / "train-00000.parquet").to_pylist()
    assert list(row) == ["anchor", "positive", "negative_1", "negative_2"]
    if positives[0].images:
        assert row["negative_1"]["text"] == "b" and row["negative_1"]["image"]["bytes"] == positives[1].images[0]
    else:
        assert row == {"anchor": "Find: q0", "positive": "a", "negative_1": "b", "negative_2": "c"}


def test_nothing_to_export_leaves_no_folder(positives: list[Content], tmp_path: Path) -> None:
    outcome = export(tmp_path, positives, "layout=tuples", "num_negatives=9")
    assert outcome.code == 2 and "nothing to export" in outcome.reason
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_what_is_left_out_stands_in_the_quarantine(positives: list[Content], tmp_path: Path) -> None:
    export(tmp_path, positives, "layout=tuples", "num_negatives=2")
    refused = pq.read_table(tmp_path / "out" / "_quarantine").to_pylist()
    assert [(row["id"], row["reason"]) for row in refused] == [
        ("1", "not_of_the_layout"), ("2", "no_candidate"), ("3", "no_candidate")
    ]  # fmt: skip
