"""MMEB and XTD files: queries, distinct candidates, pictures below a folder of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mme5core.readers import CorpusRow, ReadOptions, read_rows
from mme5core.readers.mmeb import dataset_name, target_id
from tests.core.contents import picture


def written(folder: Path, rows: list[dict[str, Any]], name: str = "CIRR/test-00000-of-00001.parquet") -> Path:
    for number in range(3):
        file = folder / "images" / f"{number}.png"
        file.parent.mkdir(exist_ok=True, parents=True)
        picture(number).save(file)
    shard = folder / name
    shard.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(rows), shard)
    return shard


def row(query: str, path: Any, texts: list[str], paths: list[str]) -> dict[str, Any]:
    return {"qry_text": query, "qry_img_path": path, "tgt_text": texts, "tgt_img_path": paths}


def read(shard: Path, folder: Path, side: str = "both") -> list[CorpusRow]:
    return list(read_rows(shard, ReadOptions(side, str(folder / "images"))))


def test_each_side_has_its_rows_and_a_candidate_of_many_queries_only_one(tmp_path: Path) -> None:
    rows = [
        row("<|image_1|>\nFind it: red\n", "0.png", ["<|image_1|>\nRepresent it.", "a cat"], ["1.png", ""]),
        row("Find it: blue\n", "", ["a cat", "<|image_1|>\nRepresent it."], ["", "2.png"]),
    ]
    shard = written(tmp_path, rows)
    queries, targets = read(shard, tmp_path, "query"), read(shard, tmp_path, "target")
    assert [(r.id, r.text, bool(r.image)) for r in queries] == [
        ("CIRR/q0", "Find it: red\n", True),
        ("CIRR/q1", "Find it: blue\n", False),
    ]
    assert [(r.text, bool(r.image)) for r in targets] == [
        ("Represent it.", True),
        ("a cat", False),
        ("Represent it.", True),
    ]
    assert targets[0].image == (tmp_path / "images" / "1.png").read_bytes()
    assert targets[1].id == target_id("CIRR", "a cat", "")
    assert len({r.id for r in targets}) == 3
    both = read(shard, tmp_path)
    assert {r.id for r in both} == {r.id for r in queries + targets}


def test_a_query_of_several_pictures_is_several_rows(tmp_path: Path) -> None:
    shard = written(tmp_path, [row("", ["0.png", "1.png"], ["x"], [""])])
    assert [r.id for r in read(shard, tmp_path, "query")] == ["CIRR/q0", "CIRR/q0.1"]


def test_what_is_missing_has_its_reason_and_nothing_else_is_lost(tmp_path: Path) -> None:
    shard = written(tmp_path, [row("<|image_1|>\n", "", ["", "a cat"], ["none.png", ""])])
    found = [(r.id, r.refused.reason if r.refused else None) for r in read(shard, tmp_path)]
    assert found == [
        ("CIRR/q0", "empty_row"),
        (target_id("CIRR", "", "none.png"), "missing_image"),
        (target_id("CIRR", "a cat", ""), None),
    ]


def test_a_dataset_is_named_by_its_folder_or_its_language(tmp_path: Path) -> None:
    rows = [row("una foto", "", ["<|image_1|>\nRepresent the given image."], ["0.png"])]
    shard = written(tmp_path, rows, "it/it.parquet")
    assert dataset_name(shard) == "it"
    assert [r.id for r in read(shard, tmp_path, "query")] == ["it/q0"]


def test_paths_start_from_the_file_where_nothing_else_is_said(tmp_path: Path) -> None:
    shard = written(tmp_path, [row("x", "images/0.png", [], [])], "test.parquet")
    assert [bool(r.image) for r in read_rows(shard)] == [True]
