"""`embed-corpus` and `evaluate` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core import Content, Encoder
from mme5core.readers import read_rows
from mme5core.vectors import Int8Calibration, cut, pack_bits
from tests.ray.conftest import World, adds_up, kill_when, read_parts, run_job

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def vectors(world: World, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("embed") / "vectors"
    ended = run_job("embed-corpus", *embed_args(world, base, output))
    assert ended.code == 0, ended.stderr
    return output


def embed_args(world: World, base: Path, output: Path) -> list[str]:
    return [
        f"input=[{world.tars}, {world.root}/bench/queries.parquet]",
        f"model={base}",
        f"output={output}",
        "window_rows=8",
        "rows_per_file=30",
    ]


def test_every_row_has_the_vector_that_the_encoder_gives_it(vectors: Path, world: World, base: Path) -> None:
    rows = read_parts(vectors)
    tars = [row.id for tar in sorted((world.root / "corpus").glob("*.tar")) for row in read_rows(tar) if row.image]
    queries = pq.read_table(world.root / "bench" / "queries.parquet")["id"].to_pylist()
    assert [row["id"] for row in rows] == tars + queries  # as they come in the input
    by_id = {row["id"]: row["embedding"] for row in rows}
    encoder = Encoder.load(base)
    some = sorted(world.images)[:5]
    expected = encoder.embed([Content(image=world.images[key]) for key in some])
    assert np.abs(np.array([by_id[key] for key in some]) - expected).max() < 1e-5
    query = pq.read_table(world.root / "bench" / "queries.parquet").to_pylist()[0]
    expected = encoder.embed([Content(query["text"])], query["instruction"])
    assert np.abs(np.array(by_id[query["id"]]) - expected[0]).max() < 1e-5


def test_counters_add_up_and_the_files_are_of_the_size_set(vectors: Path, world: World) -> None:
    counters = adds_up(vectors)
    num_queries = pq.read_metadata(world.root / "bench" / "queries.parquet").num_rows
    assert counters["kept"] == len(world.images) + num_queries
    assert counters["refused"] == {"failed_to_download": sum(world.corpus.refused.values())}
    sizes = [pq.read_metadata(file).num_rows for file in sorted(vectors.glob("part-*.parquet"))]
    assert sizes[:-1] == [30] * (len(sizes) - 1) and 0 < sizes[-1] <= 30
    field = pq.read_schema(next(vectors.glob("part-*.parquet"))).field("embedding")
    assert pa.types.is_fixed_size_list(field.type) and field.type.value_type == pa.float32()


@pytest.mark.slow
def test_vectors_are_cut_rounded_and_quantised_as_asked_and_say_what_made_them(
    vectors: Path, world: World, base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    asked = ["vectors.dim=32", "vectors.dtype=float16", "vectors.also=[int8, binary]"]
    ended = run_job("embed-corpus", *embed_args(world, base, output), *asked)
    assert ended.code == 0, ended.stderr
    table = pq.read_table(sorted(output.glob("part-*.parquet")))
    whole = {row["id"]: row["embedding"] for row in read_parts(vectors)}
    expected = cut(np.array([whole[row] for row in table["id"].to_pylist()], dtype=np.float32), 32)

    def matrix(name: str) -> np.ndarray:
        column = table[name].combine_chunks()
        return np.array(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(table), -1)

    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 32)
    assert np.abs(matrix("embedding").astype(np.float32) - expected).max() < 1e-3
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    calibration = Int8Calibration(*(np.float32(json.loads(metadata[f"mme5.int8_{part}"])) for part in ("low", "step")))
    codes = calibration.decode(matrix("embedding_int8"))
    assert (np.abs(codes - expected) <= calibration.step * 0.51 + 1e-4).all()
    assert np.array_equal(matrix("embedding_binary"), pack_bits(expected))
    assert (
        metadata["mme5.prompt_style"] == "mme5" and metadata["mme5.pooling"] == "last" and metadata["mme5.dim"] == "32"
    )
    mixed = run_job("evaluate", f"input=[{vectors}, {output}]", f"benchmark={world.root}/bench", f"output={tmp_path}/e")
    assert mixed.code == 2 and "vectors of different models" in mixed.summary["reason"]
    too_wide = run_job("embed-corpus", *embed_args(world, base, tmp_path / "wide"), "vectors.dim=1000")
    assert too_wide.code == 2 and "vectors.dim=1000 does not fit vectors of width 128" in too_wide.summary["reason"]


def test_equal_contents_are_embedded_once_and_all_get_the_vector(base: Path, tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"text {n % 3}"} for n in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "texts.parquet")
    out = tmp_path / "out"
    ended = run_job("embed-corpus", f"input={tmp_path / 'texts.parquet'}", f"model={base}", f"output={out}")
    assert ended.summary["counters"]["distinct"] == 3 and ended.summary["counters"]["kept"] == 30
    by_id = {row["id"]: row["embedding"] for row in read_parts(out)}
    assert by_id["0"] == by_id["3"] != by_id["1"]


def test_rows_of_several_pictures_have_the_vector_that_the_encoder_gives_them(
    world: World, base: Path, tmp_path: Path
) -> None:
    one, two, three = (world.images[key] for key in sorted(world.images)[:3])
    rows = [
        {"id": "both", "text": "what differs?", "images": [{"bytes": one, "path": None}, {"bytes": two, "path": None}]},
        {
            "id": "turned",
            "text": "what differs?",
            "images": [{"bytes": two, "path": None}, {"bytes": one, "path": None}],
        },
        {"id": "one", "text": None, "images": [{"bytes": three, "path": None}]},
        {"id": "again", "text": "what differs?", "images": [{"bytes": one, "path": "x"}, {"bytes": two, "path": "y"}]},
        {"id": "bad", "text": "what differs?", "images": [{"bytes": one, "path": None}, {"bytes": None, "path": None}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    ended = run_job("embed-corpus", f"input={tmp_path}/pairs.parquet", f"model={base}", f"output={tmp_path}/out")
    assert ended.code == 0, ended.stderr
    assert ended.summary["counters"]["refused"] == {"missing_image": 1} and ended.summary["counters"]["distinct"] == 3
    by_id = {row["id"]: row["embedding"] for row in read_parts(tmp_path / "out")}
    contents = [Content("what differs?", images=(one, two)), Content("what differs?", images=(two, one))]
    expected = Encoder.load(base).embed([*contents, Content(image=three)])
    vectors = np.array([by_id["both"], by_id["turned"], by_id["one"]])
    assert np.abs(vectors - expected).max() < 1e-5 and by_id["again"] == by_id["both"] != by_id["turned"]


@pytest.mark.slow  # test_embed_kills.py kills it everywhere
def test_a_killed_run_goes_on_and_ends_with_the_same_rows(
    vectors: Path, world: World, base: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    args = embed_args(world, base, output)
    kill_when("embed-corpus", *args, ready=lambda: len(list(output.glob("_work/rows/*.arrow"))) >= 2)
    left = {file.name for file in output.glob("_work/rows/*.arrow")}
    assert left and not (output / "_SUCCESS").exists()
    assert run_job("embed-corpus", *args).code == 0
    ours, theirs = read_parts(output), read_parts(vectors)
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    assert np.abs(np.array([r["embedding"] for r in ours]) - np.array([r["embedding"] for r in theirs])).max() < 1e-5


def test_a_finished_folder_is_not_done_again_and_one_of_another_model_is_refused(
    vectors: Path, world: World, base: Path
) -> None:
    before = {file: file.stat().st_mtime_ns for file in vectors.iterdir()}
    again = run_job("embed-corpus", *embed_args(world, base, vectors))
    assert again.code == 0 and again.summary["reason"] == "already done"
    other = run_job("embed-corpus", *embed_args(world, base, vectors), "max_batch_tokens=100", "dtype=bfloat16")
    assert other.code == 2 and "dtype" in other.summary["reason"]
    assert "max_batch_tokens" not in other.summary["reason"]
    assert {file: file.stat().st_mtime_ns for file in vectors.iterdir()} == before


def test_evaluate_scores_vectors_and_a_model_alike(vectors: Path, world: World, base: Path, tmp_path: Path) -> None:
    bench = f"benchmark={world.root}/bench"
    of_vectors = run_job("evaluate", f"input={vectors}", bench, f"output={tmp_path / 'v'}", f"also.again.model={base}")
    assert of_vectors.code == 0, of_vectors.stderr
    metrics = json.loads((tmp_path / "v" / "metrics.json").read_text())
    assert set(metrics) == {"model", "benchmark", "scores", "mean", "num_queries", "num_candidates"}
    assert metrics["num_candidates"] == len(world.images)
    again = json.loads((tmp_path / "v" / "metrics-again.json").read_text())
    assert again["mean"]["recall@10"] == pytest.approx(metrics["mean"]["recall@10"], abs=0.03)
    page = (tmp_path / "v" / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "<svg" in page and "data:image/jpeg" in page
    adds_up(tmp_path / "v")
