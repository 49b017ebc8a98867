"""Tests of the plan on disk: the corpus's order, neighbours joined to their pictures, doubles left out."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.corpus import index as index_module
from mme5core.corpus import scan
from mme5core.corpus.contents import number_contents
from mme5core.corpus.index import Index
from mme5core.corpus.picture_filters import FilterSettings, PictureKey
from mme5core.corpus.stored_pictures import StoredPictures
from mme5core.errors import InputError
from mme5core.images import to_jpeg
from mme5core.readers import AS_IT_IS, ReadOptions
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.synthesis import neighbour_pairs, planning
from mme5core.synthesis.plan import Neighbour, PairRules, PlanSettings, plan_image
from mme5core.synthesis.planning import Plan, make_plan, refused_samples
from mme5core.tasks import Item, Runner, Task, run_here
from tests.core.corpus.indexes import indexed

PAIRS_ONLY = {"retrieval": 1.0}


def jpeg(number: int) -> bytes:
    return to_jpeg(Image.new("RGB", (20, 20), (number * 9 % 256, number * 31 % 256, 77)))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Index, dict[str, bytes]]:
    """Two shards, three rows of their index in a group; b1 has the bytes of a2, one row holds no picture."""
    monkeypatch.setattr(scan, "ROWS_PER_GROUP", 3)
    monkeypatch.setattr(index_module, "ROWS_PER_GROUP", 3)
    images = {f"a{n}": jpeg(n) for n in range(6)} | {f"b{n}": jpeg(10 + n) for n in range(4)} | {"b1": jpeg(2)}
    for name in "ab":
        rows = [{"id": key, "image": data} for key, data in images.items() if key.startswith(name)]
        rows += [{"id": "bad", "image": b"no picture"}] if name == "a" else []
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=4)
    shards = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    return indexed(tmp_path, shards, PictureKey(FilterSettings())), images


def neighbours(folder: Path, *pairs: tuple[str, str, int] | tuple[str, str, int, str]) -> list[AnyPath]:
    """Two files of small row groups."""
    rows = [
        {"query_id": query, "candidate_id": candidate, "rank": rank, "score": 1 - rank / 10, "source": source}
        for query, candidate, rank, source in ((*pair, "clip")[:4] for pair in pairs)
    ]
    files: list[AnyPath] = [folder / "near-0.parquet", folder / "near-1.parquet"]
    for place, file in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows[place::2], NEIGHBOURS), file, row_group_size=3)
    return files


def planned(
    index: Index, work: Path, near: list[AnyPath] | None = None, run: Runner = run_here, **settings: Any
) -> Plan:
    plan_settings = PlanSettings(tasks=PAIRS_ONLY, **settings)
    return make_plan(index, plan_settings, work, neighbours=near, num_workers=1, run=run)


def records_of(plan: Plan) -> list[dict[str, Any]]:
    return [row for file in range(plan.num_files) for row in plan.rows(file)]


def test_samples_come_in_the_order_of_the_corpus_and_of_doubles_once(
    corpus: tuple[Index, dict[str, bytes]], tmp_path: Path
) -> None:
    index, images = corpus
    plan = planned(index, tmp_path, samples_per_image=2)
    ids = [row["id"] for row in records_of(plan)]
    assert ids == [f"{key}-{n}" for key in images if key != "b1" for n in range(2)]
    refused = list(refused_samples(index, number_contents(index, tmp_path), 2))
    assert sorted(r.id for r in refused) == ["b1-0", "b1-1", "bad-0", "bad-1"]
    assert {r.id: r.reason for r in refused}["b1-0"] == "duplicate_image"


def test_every_picture_of_a_sample_is_found_again(corpus: tuple[Index, dict[str, bytes]], tmp_path: Path) -> None:
    index, images = corpus
    keys = [key for key in images if key != "b1"]
    pairs = neighbours(tmp_path, *((query, other, rank + 1) for query in keys for rank, other in enumerate(keys)))
    plan = planned(index, tmp_path, pairs, samples_per_image=30, num_negatives=2, pairs=PairRules((1, 3), (3, 9)))
    pictures = StoredPictures(plan.shards, ("", ""), AS_IT_IS, Path("no index"))
    combinations = set()
    for row in records_of(plan):
        combinations.add(row["modality_combination"])
        shown = dict.fromkeys(i for i in (row["query_image"], row["positive_image"], *row["negative_images"]) if i)
        assert [place["id"] for place in row["pictures"]] == list(shown)
        for place in row["pictures"]:
            assert pictures.read(place) == images[place["id"]]
    assert combinations == {"I2T", "IT2T", "T2I", "T2IT", "I2I", "IT2I", "IT2IT"}


def test_neighbours_that_are_not_usable_pictures_are_left_out(
    corpus: tuple[Index, dict[str, bytes]], tmp_path: Path
) -> None:
    index, _ = corpus
    pairs = neighbours(
        tmp_path,
        ("b0", "b1", 1), ("b0", "nowhere", 2), ("b0", "bad", 3), ("b0", "a3", 4), ("b0", "b0", 5), ("b1", "a0", 1),
        ("b0", "a1", 6), ("b0", "b2", 7),
    )  # fmt: skip
    plan = planned(index, tmp_path, pairs, samples_per_image=40, pairs=PairRules((1, 1), (2, 2)))
    assert plan.num_pairs == 3
    both = [row for row in records_of(plan) if row["query_image"] == "b0" and row["positive_image"]]
    # Ranks count over what can be used: a3, a1, b2.
    assert both and {row["positive_image"] for row in both} == {"a3"}
    assert {image for row in both for image in row["negative_images"]} == {"a1"}
    others = [row for row in records_of(plan) if row["query_image"] != "b0" and row["positive_image"] != "b0"]
    assert all(not row["positive_image"] for row in others)


def test_neighbours_of_another_corpus_are_refused(corpus: tuple[Index, dict[str, bytes]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of its 2 pairs .* 'x y'.* another corpus"):
        planned(corpus[0], tmp_path, neighbours(tmp_path, ("x", "y", 1), ("a0", "z", 1)))


def test_samples_that_pictures_have_too_few_neighbours_for_are_counted(
    corpus: tuple[Index, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [("a0", f"b{n}", n + 1) for n in (0, 2, 3)]
    plan = planned(corpus[0], tmp_path, neighbours(tmp_path, *pairs), combinations={"T2I": 1.0}, samples_per_image=2)
    assert {row["id"] for row in records_of(plan)} == {"a0-0", "a0-1"} and plan.num_not_drawn == 2 * 8
    assert "16 samples are not planned: their pictures have too few neighbours" in capsys.readouterr().err
    # The same is said by a run that goes on.
    planned(corpus[0], tmp_path, neighbours(tmp_path, *pairs), combinations={"T2I": 1.0}, samples_per_image=2)
    assert "16 samples are not planned" in capsys.readouterr().err


def test_a_plan_of_nothing_is_refused(corpus: tuple[Index, dict[str, bytes]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not one sample can be planned: T2I, T2IT need neighbours="):
        planned(corpus[0], tmp_path, combinations={"T2I": 1.0, "T2IT": 1.0})


def test_an_index_of_which_a_part_is_not_seen_is_no_index_without_it(
    corpus: tuple[Index, dict[str, bytes]], tmp_path: Path
) -> None:
    index, _ = corpus
    planning.Corpus.write(index, number_contents(index, tmp_path), tmp_path)
    pictures = planning.Corpus(index, tmp_path, 9)
    assert len(list(pictures.ids(pictures.rows(0, 9)))) == 9
    (tmp_path / "index" / "000001.parquet").rename(tmp_path / "hidden")
    with pytest.raises(FileNotFoundError, match="3 rows of the index are not seen"):
        list(pictures.ids(pictures.rows(0, 9)))


def test_neighbours_without_a_pair_are_refused(corpus: tuple[Index, dict[str, bytes]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not one pair"):
        planned(corpus[0], tmp_path, neighbours(tmp_path))


def test_the_plan_is_what_each_picture_and_its_neighbours_give_however_the_tasks_are_cut(
    corpus: tuple[Index, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, images = corpus
    keys = [key for key in images if key != "b1"]
    draw = random.Random(0)
    pairs = [
        (query, other, rank, source)
        for query in keys
        for source in ("clip", "dino", "bow")
        for rank, other in enumerate(draw.sample(keys, 7), start=1)
    ]
    draw.shuffle(pairs)
    expected = []
    settings = PlanSettings(tasks=PAIRS_ONLY, samples_per_image=20)
    for key in keys:
        near = sorted((rank, source, other) for query, other, rank, source in pairs if query == key != other)
        expected += plan_image(key, settings, [Neighbour(other, 1 - rank / 10, source) for rank, source, other in near])

    def backwards(task: Task, items: Sequence[Item]) -> Iterator[Item]:
        assert len(items) > 2
        return reversed([report for item in items for report in task(item)])

    for name in ("FEWEST_PER_FILE", "SAMPLES_PER_TASK"):
        monkeypatch.setattr(planning, name, 1)
    monkeypatch.setattr(planning, "FILES_PER_WORKER", 1000)
    for name in ("ROWS_PER_TASK", "ROWS_PER_RUN"):
        monkeypatch.setattr(neighbour_pairs, name, 2)
    plan = planned(index, tmp_path, neighbours(tmp_path, *pairs), backwards, samples_per_image=20)
    assert plan.num_files == len(keys) and plan.num_pairs == sum(query != other for query, other, _, _ in pairs)
    assert [planning.planned(row) for row in records_of(plan)] == expected
    kinds = Counter(f"{one.task} {one.modality_combination}" for one in expected)
    languages = Counter(one.language for one in expected)
    assert plan.counts == {"kinds": kinds, "languages": languages}
    assert not list(tmp_path.glob("planning-*"))


def test_of_the_index_only_what_has_the_rows_that_are_asked_for_is_read(
    corpus: tuple[Index, dict[str, bytes]],
) -> None:
    index, images = corpus
    ids = [*(key for key in images if key < "b"), "bad", *(key for key in images if key >= "b")]
    for start in range(len(ids)):
        for stop in range(start + 1, len(ids) + 1):
            read = {}
            for numbers, table in index.tables(["id"], within=(start, stop)):
                read |= dict(zip(numbers.tolist(), table["id"].to_pylist(), strict=True))
            assert all(ids[number] == name for number, name in read.items())
            assert set(range(start, stop)) <= read.keys()
            # Whole groups of three rows of a shard.
            group_of = [number // 3 if number < 7 else 3 + (number - 7) // 3 for number in range(len(ids))]
            assert {group_of[number] for number in read} == {group_of[number] for number in range(start, stop)}


def test_a_plan_that_is_there_is_taken(corpus: tuple[Index, dict[str, bytes]], tmp_path: Path) -> None:
    index, _ = corpus
    first = records_of(planned(index, tmp_path))
    assert records_of(planned(index, tmp_path, seed=99)) == first
    left = tmp_path / "planning-of-a-killed-run"
    (tmp_path / "plan").rename(left)
    assert records_of(planned(index, tmp_path)) == first and not left.exists()


def test_files_hold_all_samples_of_a_picture(corpus: tuple[Index, dict[str, bytes]], tmp_path: Path) -> None:
    plan = planned(corpus[0], tmp_path, samples_per_image=50)
    assert plan.num_files > 1 and len(plan) == 9 * 50
    for file in range(plan.num_files):
        rows = plan.rows(file)
        assert len(rows) == plan.starts[file + 1] - plan.starts[file] and len(rows) % 50 == 0


def test_filters_refuse_what_they_do_not_let_pass(tmp_path: Path) -> None:
    def picture(width: int, height: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), (width, height, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    rows = [
        {"id": "good", "image": picture(64, 64), "NSFW": "UNLIKELY", "punsafe": 0.1, "similarity": 0.4},
        {"id": "nsfw", "image": picture(64, 65), "NSFW": "NSFW", "punsafe": 0.1, "similarity": 0.4},
        {"id": "unsafe", "image": picture(64, 66), "NSFW": "UNLIKELY", "punsafe": 0.9, "similarity": 0.4},
        {"id": "nan", "image": picture(64, 67), "NSFW": "UNLIKELY", "punsafe": float("nan"), "similarity": 0.4},
        {"id": "unknown", "image": picture(64, 68), "NSFW": "UNLIKELY", "punsafe": 0.1, "similarity": None},
        {"id": "small", "image": picture(30, 64), "NSFW": "UNLIKELY", "punsafe": 0.1, "similarity": 0.4},
        {"id": "long", "image": picture(64, 200), "NSFW": "UNLIKELY", "punsafe": 0.1, "similarity": 0.4},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    filters = FilterSettings(nsfw=["UNLIKELY"], max_punsafe=0.5, min_similarity=0.3, min_side=32, max_aspect_ratio=3)
    options = ReadOptions(columns=("NSFW", "punsafe", "similarity"))
    index = indexed(tmp_path, [tmp_path / "a.parquet"], PictureKey(filters), options=options)
    assert {r.id: r.reason for r in index.refused()} == {
        "nsfw": "filtered_nsfw",
        "unsafe": "filtered_punsafe",
        "nan": "filtered_punsafe",
        "unknown": "filtered_similarity",
        "small": "filtered_size",
        "long": "filtered_aspect_ratio",
    }
