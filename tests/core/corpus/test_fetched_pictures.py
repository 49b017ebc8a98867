"""Tests of a scan that fetches: each picture once, found again beside the index, and none refused for an outage."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.corpus.index import Index
from mme5core.corpus.picture_filters import FilterSettings, PictureKey
from mme5core.corpus.scan import ScanShard, scan
from mme5core.corpus.stored_pictures import StoredPictures
from mme5core.errors import WorkPending
from mme5core.images import BadImage
from mme5core.readers import CorpusRow, ReadOptions
from tests.core.corpus.picture_server import PictureServer

OPTIONS = ReadOptions(allow_hosts=("127.0.0.1",), fetch=False)


def key_of(row: CorpusRow) -> bytes:
    assert isinstance(row.image, bytes)
    return row.image[-16:].rjust(16)


def scanned(folder: Path, file: Path, *, refuses_unreachable: bool = False) -> Index:
    task = ScanShard(folder / "index", key_of, options=OPTIONS, fetches=True, refuses_unreachable=refuses_unreachable)
    return scan([file], [file.name], task, job="test")


def corpus(folder: Path, server: PictureServer, *names: str) -> Path:
    pictures = [f"{server.address}/{name}" for name in names]
    pq.write_table(pa.table({"id": list(names), "image": pictures}), folder / "a.parquet")
    return folder / "a.parquet"


def places(index: Index) -> list[dict[str, object]]:
    tables = index.tables(["id", "offset", "num_bytes"], usable=True)
    return [row | {"shard": 0} for _, table in tables for row in table.to_pylist()]


def test_a_scan_fetches_each_picture_once_and_it_is_read_again_from_the_disk(
    server: PictureServer, tmp_path: Path
) -> None:
    names = [f"{n}.png" for n in range(50)]
    file = corpus(tmp_path, server, *names)
    index = scanned(tmp_path, file)
    pictures = StoredPictures((str(file),), ("a.parquet",), OPTIONS, tmp_path / "index")
    asked = len(server.asked)
    assert asked == 50 and index.num_usable == 50
    assert [pictures.read(place) for place in places(index)] == [server.picture(f"/{name}") for name in names]
    assert scanned(tmp_path, file).num_usable == 50 and len(server.asked) == asked


def test_a_scan_with_servers_that_are_away_ends_unfinished_and_goes_on_later(
    server: PictureServer, tmp_path: Path
) -> None:
    file = corpus(tmp_path, server, "0.png", "1.png", "gone.png")
    server.away = {"/1.png"}
    with pytest.raises(WorkPending, match=r"1 pictures could not be reached \(.*1\.png.*503.*unreachable=refuse"):
        scanned(tmp_path, file)
    server.away, server.asked[:] = set(), []
    index = scanned(tmp_path, file)
    assert sorted(server.asked) == ["/1.png", "/gone.png"]  # what is there is not fetched again
    pictures = StoredPictures((str(file),), ("a.parquet",), OPTIONS, tmp_path / "index")
    assert [pictures.read(place) for place in places(index)] == [server.picture("/0.png"), server.picture("/1.png")]
    assert [(row.id, row.reason) for row in index.refused()] == [("gone.png", "missing_image")]


def test_or_goes_on_without_them(server: PictureServer, tmp_path: Path) -> None:
    server.away = {"/1.png"}
    index = scanned(tmp_path, corpus(tmp_path, server, "0.png", "1.png"), refuses_unreachable=True)
    assert index.num_usable == 1
    assert [(row.id, row.reason) for row in index.refused()] == [("1.png", "unreachable_image")]


def test_a_task_that_runs_beside_its_twin_spoils_no_picture(server: PictureServer, tmp_path: Path) -> None:
    file = corpus(tmp_path, server, "0.png", "1.png")
    index = scanned(tmp_path, file)
    server.away = {"/0.png"}
    task = ScanShard(tmp_path / "index", key_of, options=OPTIONS, fetches=True)
    late = task({"shard": 0, "path": str(file), "label": ""})
    next(late)
    late.close()  # killed before its index appears
    pictures = StoredPictures((str(file),), ("a.parquet",), OPTIONS, tmp_path / "index")
    assert [pictures.read(place) for place in places(index)] == [server.picture(f"/{n}.png") for n in range(2)]


def test_where_nothing_is_fetched_no_file_of_pictures_is_made(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "image": [b"\x00pixels"]}), tmp_path / "a.parquet")
    index = scanned(tmp_path, tmp_path / "a.parquet")
    assert index.num_usable == 1 and not list((tmp_path / "index").glob("*.pictures"))


def test_what_killed_scans_have_left_is_deleted(server: PictureServer, tmp_path: Path) -> None:
    file = corpus(tmp_path, server, "0.png", "1.png")
    server.away = {"/1.png"}
    with pytest.raises(WorkPending):
        scanned(tmp_path, file)
    leftovers = [tmp_path / "index" / f".{'0' * 32}", tmp_path / "index" / f"{'0' * 32}.pictures"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
        os.utime(leftover, (0, 0))
    fresh = tmp_path / "index" / f".{'1' * 32}"
    fresh.write_bytes(b"of another run")
    server.away = set()
    index = scanned(tmp_path, file)
    kept = {path.suffix for path in (tmp_path / "index").iterdir()}
    assert not any(leftover.exists() for leftover in leftovers) and ".earlier" not in kept and fresh.exists()
    assert len(list((tmp_path / "index").glob("*.pictures"))) == 1
    pictures = StoredPictures((str(file),), ("a.parquet",), OPTIONS, tmp_path / "index")
    assert [pictures.read(place) for place in places(index)] == [server.picture(f"/{n}.png") for n in range(2)]


def test_what_a_filter_refuses_by_its_columns_is_not_fetched(server: PictureServer, tmp_path: Path) -> None:
    pictures = [f"{server.address}/{name}.png" for name in "abc"]
    nsfw = ["UNLIKELY", "NSFW", "UNLIKELY"]
    pq.write_table(pa.table({"id": list("abc"), "image": pictures, "NSFW": nsfw}), tmp_path / "a.parquet")
    check = PictureKey(FilterSettings(nsfw=["UNLIKELY"])).check_columns
    options = replace(OPTIONS, columns=("NSFW",))
    task = ScanShard(tmp_path / "index", key_of, options=options, fetches=True, check=check)
    index = scan([tmp_path / "a.parquet"], ["a.parquet"], task, job="test")
    assert [(row.id, row.reason) for row in index.refused()] == [("b", "filtered_nsfw")]
    assert sorted(server.asked) == ["/a.png", "/c.png"]


def test_a_file_that_is_gone_is_a_picture_that_is_away(tmp_path: Path) -> None:
    pictures = StoredPictures((str(tmp_path / "gone.tar"),), ("gone.tar",), OPTIONS, tmp_path / "index")
    with pytest.raises(BadImage, match=r"unreachable_image: .*gone.tar: .*No such file"):
        pictures.read({"id": "a", "shard": 0, "offset": 512, "num_bytes": 10})
