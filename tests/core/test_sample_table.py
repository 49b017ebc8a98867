"""Tests of training samples on disk: the usable ones mapped in order, every other with its reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.content_key import document_key
from mme5core.errors import InputError
from mme5core.sample_table import MAPPED, SampleTable, count_by, map_samples
from mme5core.types import Content, Rejected, Sample

Row = dict[str, Any]


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), shade).save(buffer, format="PNG")
    return buffer.getvalue()


def content(text: str | None = None, image: bytes | None = None, path: str | None = None) -> Row:
    return {"text": text, "image": {"bytes": image, "path": path} if image is not None or path else None}


def row(sample_id: str, **changes: Any) -> Row:
    values = {
        "query": content(f"query {sample_id}", png(0)),
        "positive": content(f"positive {sample_id}"),
        "negatives": [content("negative"), content("other", png(1))],
        "instruction": "Find:",
        "document_instruction": None,
    }
    return {"id": sample_id} | values | changes


def mapped(
    tmp_path: Path,
    *shards: list[Row],
    num_negatives: int = 1,
    limit: int | None = None,
    needs_scores: bool = False,
) -> tuple[SampleTable, list[Rejected], list[int]]:
    schema = pa.schema(
        [field for field in MAPPED if field.name not in ("modality_combination", "positive_key", "source")]
    )
    files = [tmp_path / f"{number}.parquet" for number in range(len(shards))]
    for file, rows in zip(files, shards, strict=True):
        pq.write_table(pa.Table.from_pylist(rows, schema), file)
    *progress, refused = map_samples(
        {"all": files},
        tmp_path / "mapped.arrow",
        num_negatives=num_negatives,
        limit=limit,
        needs_scores=needs_scores,
    )
    assert isinstance(refused, list)
    return SampleTable(tmp_path / "mapped.arrow"), refused, [int(str(count)) for count in progress]


def ids(samples: SampleTable) -> list[str]:
    return [samples[place].id for place in range(len(samples))]


def reasons(refused: list[Rejected]) -> list[tuple[str, str]]:
    return [(rejected.id, rejected.reason) for rejected in refused]


def test_a_sample_comes_back_as_it_was_with_the_first_of_its_negatives(tmp_path: Path) -> None:
    samples, refused, _ = mapped(tmp_path, [row("a", document_instruction="Represent:")], num_negatives=1)
    expected = Sample(
        "a",
        Content("query a", png(0)),
        Content("positive a"),
        (Content("negative"),),
        "Find:",
        "Represent:",
        "all",
    )
    assert (samples[0], refused) == (expected, [])
    assert samples.combinations == ["IT2T"]


def test_a_negative_keeps_text_and_picture_together(tmp_path: Path) -> None:
    samples, _, _ = mapped(tmp_path, [row("a")], num_negatives=2)
    assert samples[0].negatives == (Content("negative"), Content("other", png(1)))


def test_samples_stand_in_the_order_of_shards_and_rows_across_batches(tmp_path: Path) -> None:
    names = [str(number) for number in range(150)]
    samples, refused, progress = mapped(tmp_path, [row(n) for n in names[:70]], [row(n) for n in names[70:]])
    assert (ids(samples), refused) == (names, [])
    assert progress == sorted(progress) and progress[-1] == 150


@pytest.mark.parametrize("limit", [0, 1, 3, 5, 100])
def test_the_limit_counts_rows_read_across_shards_and_also_refused_ones(tmp_path: Path, limit: int) -> None:
    shards = [[row("a"), row("b", negatives=[]), row("c")], [row("d"), row("e")]]
    samples, refused, progress = mapped(tmp_path, *shards, limit=limit)
    assert ids(samples) == [name for name in "abcde"[:limit] if name != "b"]
    assert len(refused) + len(samples) == progress[-1] == min(limit, 5)


BAD: dict[str, tuple[Row, str]] = {
    "no negatives": ({"negatives": None}, "too_few_negatives"),
    "an empty positive": ({"positive": content("")}, "bad_content"),
    "a query of blanks": ({"query": content("  \n")}, "bad_content"),
    "no query": ({"query": None}, "bad_content"),
    "a negative that is null": ({"negatives": [None]}, "bad_content"),
    "a text as picture": ({"query": content("q", b"<html>")}, "not_an_image"),
    "half a picture": ({"negatives": [content("n", png(0)[:45])]}, "broken_image"),
    "its positive as negative": (
        {"positive": content("p", png(3)), "negatives": [content("p", png(3))]},
        "positive_among_negatives",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_sample_is_refused_between_its_good_neighbours(tmp_path: Path, what: str) -> None:
    changes, reason = BAD[what]
    samples, refused, _ = mapped(tmp_path, [row("a"), row("b", **changes), row("c")])
    assert (ids(samples), reasons(refused)) == (["a", "c"], [("b", reason)])


@pytest.mark.parametrize("query", [content("q", path="gone.jpg"), content("q", image=b"")], ids=["path", "no bytes"])
def test_a_sample_whose_picture_is_not_there_is_refused_and_not_read_as_text(tmp_path: Path, query: Row) -> None:
    samples, refused, _ = mapped(tmp_path, [row("a", query=query), row("b")])
    assert (ids(samples), [rejected.id for rejected in refused]) == (["b"], ["a"])


def test_a_repeated_id_is_refused_also_in_another_shard(tmp_path: Path) -> None:
    samples, refused, _ = mapped(tmp_path, [row("a"), row("b")], [row("a")])
    assert (ids(samples), reasons(refused)) == (["a", "b"], [("a", "duplicate_id")])


def test_samples_without_ids_are_named_by_their_places(tmp_path: Path) -> None:
    blank = row("") | {"id": None}
    samples, refused, _ = mapped(tmp_path, [row("a"), blank, blank], [blank])
    assert (ids(samples), refused) == (["a", "0.parquet:1", "0.parquet:2", "1.parquet:0"], [])


def test_a_content_that_is_a_plain_text_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "query": "q", "positive": "p", "negatives": ["n"], "instruction": "", "document_instruction": ""}
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "plain.parquet")
    *_, refused = map_samples({"all": [tmp_path / "plain.parquet"]}, tmp_path / "m.arrow", num_negatives=1, limit=None)
    assert refused == [Rejected("a", "bad_content", "a str where a struct of text and image is expected")]


def test_a_positive_among_negatives_that_are_not_used_does_no_harm(tmp_path: Path) -> None:
    samples, refused, _ = mapped(tmp_path, [row("a", negatives=[content("n"), content("positive a")])])
    assert (ids(samples), refused) == (["a"], [])


def test_the_positive_key_is_equal_for_equal_documents_only(tmp_path: Path) -> None:
    positives = [content("p"), content("p"), content("p", png(1)), content("p", png(2)), content(None, png(1))]
    rows = [row(str(number), positive=positive) for number, positive in enumerate(positives)]
    keys = mapped(tmp_path, rows)[0].positive_keys
    assert keys[0] == keys[1] == document_key(Content("p"))
    assert len(set(keys)) == 4 and {len(key) for key in keys} == {8}


def test_without_negatives_wanted_none_are_kept(tmp_path: Path) -> None:
    samples, refused, _ = mapped(tmp_path, [row("a"), row("b", negatives=None)], num_negatives=0)
    assert [samples[place].negatives for place in (0, 1)] == [(), ()] and not refused


def test_a_query_that_is_a_plain_string_is_refused(tmp_path: Path) -> None:
    plain = [row("a") | {"query": "a cat", "positive": "cat", "negatives": ["dog"]}]
    pq.write_table(pa.Table.from_pylist(plain), tmp_path / "a.parquet")
    *_, refused = map_samples({"all": [tmp_path / "a.parquet"]}, tmp_path / "mapped.arrow", num_negatives=1, limit=None)
    assert isinstance(refused, list) and reasons(refused) == [("a", "bad_content")]


def test_a_file_without_a_column_of_samples_or_none_at_all_is_an_input_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "query": ["b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"half")
    for name, message in (("a.parquet", "no column 'positive'; it has id, query"), ("b.parquet", "cannot be read")):
        with pytest.raises(InputError, match=message):
            list(map_samples({"all": [tmp_path / name]}, tmp_path / "mapped.arrow", num_negatives=1, limit=None))
    assert not (tmp_path / "mapped.arrow").exists()


def test_values_are_counted_by_name() -> None:
    assert count_by(["T2I", "I2T", "T2I"]) == {"I2T": 1, "T2I": 2}
    assert count_by([]) == {}


@pytest.mark.parametrize("token", ["<|image|>", "<image>", "<|image_1|>\n", "<|image_pad|>", "<start_of_image>"])
def test_a_text_that_would_be_taken_for_a_picture_is_refused(token: str, tmp_path: Path) -> None:
    rows = [row("a", query=content(f"{token}what is it?")), row("b", negatives=[content(token)]), row("c")]
    samples, refused, _ = mapped(tmp_path, rows)
    assert ids(samples) == ["c"]
    assert reasons(refused) == [("a", "picture_token_in_text"), ("b", "picture_token_in_text")]


def test_where_scores_are_needed_every_candidate_must_have_one(tmp_path: Path) -> None:
    rows = [
        row("a", scores=[0.5, 0.25, 1.0], task="vqa"),
        row("b", scores=[0.5]),
        row("c", scores=[0.5, 1.5, 0.0]),
        row("d"),
        row("e", scores=[0.5, None, 0.1]),
    ]
    samples, refused, _ = mapped(tmp_path, rows, needs_scores=True)
    assert ids(samples) == ["a"] and samples[0].scores == (0.5, 0.25) and samples.tasks == ["vqa"]
    assert reasons(refused) == [(name, "no_scores") for name in "bcde"]
    assert ids(mapped(tmp_path, rows)[0]) == ["a", "b", "c", "d", "e"]


def test_every_source_has_ids_of_its_own(tmp_path: Path) -> None:
    mapped(tmp_path, [row("a"), row("b")])
    for _ in map_samples(
        {"x": [tmp_path / "0.parquet"], "y": [tmp_path / "0.parquet"]}, tmp_path / "two.arrow", num_negatives=1, limit=3
    ):
        pass
    samples = SampleTable(tmp_path / "two.arrow")
    assert list(zip(ids(samples), samples.sources, strict=True)) == [("a", "x"), ("b", "x"), ("a", "y")]
