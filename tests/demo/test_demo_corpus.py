"""The demo corpus on disk: as img2dataset writes LAION, and read as LAION is read."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.demo import corpus as corpus_module
from mme5core.demo.annotations import Emoji, find_font
from mme5core.demo.corpus import IMAGE_SIZE, Corpus, write_corpus
from mme5core.images import load_rgb
from mme5core.readers import find_shards, read_rows
from mme5core.schemas import IMG2DATASET


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.parquet")):
        assert pq.read_schema(file).remove_metadata().equals(IMG2DATASET)
        rows += pq.read_table(file).to_pylist()
    return rows


def members_of(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None and member.name not in found
                found[member.name] = stream.read()
    return found


def test_every_emoji_is_a_row_and_failed_ones_stand_in_the_parquet_alone(
    corpus_folder: Path, corpus: Corpus, few_emoji: list[Emoji]
) -> None:
    rows, members = rows_of(corpus_folder), members_of(corpus_folder)
    good = [row["key"] for row in rows if row["status"] == "success"]
    failed = [row["key"] for row in rows if row["status"] != "success"]
    assert len(good) == len(few_emoji) and failed
    assert set(members) == {f"{key}.{suffix}" for key in good for suffix in ("jpg", "json", "txt")}
    assert corpus.num_read == len(rows) == len(good) + sum(corpus.refused.values())
    assert corpus.refused == {"failed_to_download": len(failed)}
    for row in rows:
        if row["key"] in failed:
            assert row["status"] == "failed_to_download" and row["error_message"]
            assert row["sha256"] is None and row["width"] is None


def test_tar_and_parquet_agree_on_every_picture(corpus_folder: Path, few_emoji: list[Emoji]) -> None:
    members = members_of(corpus_folder)
    good = [row for row in rows_of(corpus_folder) if row["status"] == "success"]
    assert [row["caption"] for row in good] == [emoji.english_name for emoji in few_emoji]
    for row, emoji in zip(good, few_emoji, strict=True):
        data = members[f"{row['key']}.jpg"]
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        assert members[f"{row['key']}.txt"].decode() == row["caption"]
        assert json.loads(members[f"{row['key']}.json"]) == row
        assert row["url"].endswith(f"/{emoji.id}.jpg")
        assert Image.open(io.BytesIO(data)).size == (row["width"], row["height"]) == (IMAGE_SIZE, IMAGE_SIZE)


def test_the_readers_give_every_row_back_with_its_picture_or_its_reason(corpus_folder: Path, corpus: Corpus) -> None:
    shards = find_shards([str(corpus_folder)])
    assert all(shard.suffix == ".tar" for shard in shards)
    rows = [row for shard in shards for row in read_rows(shard)]
    good = {row.id: row.image for row in rows if row.refused is None}
    refused = [row.refused for row in rows if row.refused is not None]
    assert len(rows) == corpus.num_read == len({row.id for row in rows})
    assert {key: hashlib.sha256(data or b"").hexdigest() for key, data in good.items()} == {
        picture.key: picture.sha256 for picture in corpus.pictures
    }
    assert [r.reason for r in refused] == ["failed_to_download"] * corpus.refused["failed_to_download"]
    assert all(load_rgb(data).size == (IMAGE_SIZE, IMAGE_SIZE) for data in good.values())


def test_the_stats_beside_each_tar_count_its_rows(corpus_folder: Path) -> None:
    for file in corpus_folder.glob("*_stats.json"):
        stats = json.loads(file.read_text())
        rows = pq.read_table(file.with_name(file.name.replace("_stats.json", ".parquet"))).to_pylist()
        successes = sum(row["status"] == "success" for row in rows)
        assert (stats["count"], stats["successes"]) == (len(rows), successes)
        assert (
            stats["failed_to_download"] == stats["count"] - successes == sum(stats["status_dict"].values()) - successes
        )


def test_pictures_are_drawn_in_colour_and_each_has_its_own_look(corpus: Corpus, data_by_key: dict[str, bytes]) -> None:
    # Among the ten flags none is another's; a font that is not found would draw 30 equal boxes.
    assert len({picture.sha256 for picture in corpus.pictures}) == 30
    num_colourful = 0
    for data in data_by_key.values():
        pixels = np.asarray(load_rgb(data), dtype=int)
        assert (pixels.min(axis=2) < 128).any() and (pixels.min(axis=2) > 250).any()
        num_colourful += bool((np.ptp(pixels, axis=2) > 60).any())
    assert num_colourful >= 25  # a gorilla is grey


def test_the_same_font_draws_the_same_bytes_each_time(corpus: Corpus, corpus_folder: Path) -> None:
    # The corpus of the fixture was written twice, into two folders.
    assert [row["sha256"] for row in rows_of(corpus_folder) if row["sha256"]] == [p.sha256 for p in corpus.pictures]


def test_a_corpus_of_several_shards_is_the_same_corpus(
    tmp_path: Path, few_emoji: list[Emoji], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "ROWS_PER_SHARD", 8)
    *progress, last = write_corpus(tmp_path, few_emoji[:10], find_font())
    assert isinstance(last, Corpus)
    # 10 emoji, each after a failed row of its own: 20 rows, in shards of 8, 8 and 4.
    assert progress == [8, 16, 20] and last.num_read == 20
    assert [pq.read_metadata(file).num_rows for file in sorted(tmp_path.glob("*.parquet"))] == [8, 8, 4]
    rows = [row for shard in find_shards([str(tmp_path)]) for row in read_rows(shard)]
    assert len({row.id for row in rows}) == 20
    assert [row.id for row in rows if row.refused is None] == [picture.key for picture in last.pictures]
