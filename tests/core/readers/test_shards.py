"""Tests of what an `input` means: files, folders, globs, lists, and what is passed over."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mme5core.errors import InputError
from mme5core.readers import find_shards, input_files, input_identity
from mme5core.readers.shards import labels, pictures_in
from mme5core.storage import AnyPath


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(*inputs: str | Path, **options: tuple[str, ...]) -> list[str]:
    return [shard.name for shard in find_shards([str(text) for text in inputs], **options)]


def test_a_folder_means_its_data_files_in_order_without_hidden_and_underscored_ones(tmp_path: Path) -> None:
    data = ["00010.tar", "00002.tar", "b.jsonl", "a.parquet"]
    folder = folder_of(tmp_path, *data, "_manifest.parquet", ".staged.parquet", "notes.txt", "sub/c.parquet")
    (folder / "folder.tar").mkdir()
    (folder / "_work").mkdir()
    (folder / "_drafts").mkdir()
    (folder / ".hidden.md").touch()
    (folder / "_work" / "d.parquet").touch()
    noted: list[str] = []
    assert names(folder, note=noted.append) == [*sorted(data), "c.parquet"]
    others = ".staged.parquet, _drafts/, _manifest.parquet, ..."
    assert noted == [f"input {str(folder)!r}: 4 other files are not read: {others}"]


def test_rows_without_ids_are_named_apart_in_files_of_one_name(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", "x.jsonl")
    folder_of(tmp_path / "b", "x.jsonl", "y.jsonl")
    shards = find_shards([str(tmp_path)])
    assert labels(shards, [str(tmp_path)]) == ["a/x.jsonl", "b/x.jsonl", "b/y.jsonl"]
    assert labels(shards[:1], [str(tmp_path)]) == ["a/x.jsonl"]  # the others do not matter
    apart = labels(shards, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert apart == ["a/x.jsonl", "b/x.jsonl", "y.jsonl"]


def test_folders_of_pictures_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        folder_of(tmp_path / name, "a.png")
    shards = find_shards([str(tmp_path / "*")], pictures=True)
    assert labels(shards, [str(tmp_path / "*")]) == ["cats", "dogs"]
    assert labels(shards, [str(shard) for shard in shards]) == ["cats", "dogs"]
    assert labels(shards[:1], [str(shards[0])]) == [""]


def test_links_in_a_circle_pipes_and_the_jobs_own_output_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "in", "a.png", "sub/b.png", "out/part-00000.parquet")
    elsewhere = folder_of(tmp_path / "elsewhere", "c.png")
    for link, target in (("latest", "."), ("up", ".."), ("again", "sub"), ("out_of_it", "../elsewhere")):
        (folder / link).symlink_to(target)
    (elsewhere / "itself").symlink_to(".")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.jsonl")
    assert [name for name, _ in pictures_in(folder)] == ["a.png", "out_of_it/c.png", "sub/b.png"]
    assert names(folder) == ["part-00000.parquet"]
    assert find_shards([str(folder)], pictures=True, without=str(folder / "out")) == [folder]
    monkeypatch.chdir(tmp_path)
    assert find_shards(["in"], pictures=True, without="in/out") == [folder]
    (tmp_path / "link").symlink_to("in")
    assert find_shards(["link"], pictures=True, without=str(folder / "out")) == [tmp_path / "link"]
    with pytest.raises(InputError, match="not a regular file"):
        names(folder / "pipe.jsonl")


def test_the_parquet_beside_a_tar_is_the_tars(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "00000.tar", "00000.parquet", "00001.parquet")
    assert names(folder) == ["00000.tar", "00001.parquet"]
    assert names(folder / "*") == ["00000.tar", "00001.parquet"]


def test_where_no_tars_are_read_the_parquet_beside_one_counts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "00000.tar", "00000.parquet")
    assert names(folder, suffixes=(".parquet",)) == ["00000.parquet"]


def test_a_glob_means_its_matches_that_are_data(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a1.jsonl", "a2.jsonl", "b1.jsonl", "a3.txt")
    assert names(folder / "a*") == ["a1.jsonl", "a2.jsonl"]


def test_a_list_keeps_its_order_and_gives_each_file_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "b.jsonl", "a.jsonl")
    assert names(folder / "b.jsonl", folder, folder / "." / "a.jsonl") == ["b.jsonl", "a.jsonl"]


def test_brackets_in_a_name_are_not_a_glob_where_such_a_file_is_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "set[x].jsonl")
    assert names(folder / "set[x].jsonl") == ["set[x].jsonl"]


def test_a_link_keeps_its_own_name_as_in_the_hubs_cache(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "blobs/0123abcd", "snapshots/readme.txt") / "snapshots"
    (folder / "train.parquet").symlink_to(tmp_path / "blobs" / "0123abcd")
    assert names(folder) == ["train.parquet"]
    assert names(folder / "train.parquet") == ["train.parquet"]


def test_a_missing_input_is_quoted_as_typed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/gone\*\.tar': no such file or folder"):
        find_shards([f"{tmp_path}/gone*.tar"])


def test_one_missing_input_among_good_ones_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jsonl")
    with pytest.raises(InputError, match="gone"):
        find_shards([str(folder), str(folder / "gone")])


def test_a_folder_without_data_is_refused_with_the_formats_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \.tar, \.parquet, \.jsonl file"):
        find_shards([str(folder_of(tmp_path, "a.txt"))])


def test_a_file_of_another_format_and_no_input_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt': not a \.tar"):
        find_shards([str(folder_of(tmp_path, "a.txt") / "a.txt")])
    with pytest.raises(InputError, match="no input given"):
        find_shards([])


def identity_of(shards: Sequence[AnyPath]) -> str:
    return input_identity(input_files(shards))


def test_the_identity_is_of_names_and_content_and_not_of_the_place(tmp_path: Path) -> None:
    here = find_shards([str(folder_of(tmp_path / "here", "a.jsonl", "b.jsonl"))])
    there = find_shards([str(folder_of(tmp_path / "there", "a.jsonl", "b.jsonl"))])
    identity = identity_of(here)
    assert identity == identity_of(there)
    assert len(identity) == 16
    text = there[0].read_text()
    there[0].write_text(text[::-1])  # another content of the same size
    assert there[0].read_text() != text and identity_of(there) != identity
    there[0].write_text("longer than before")
    assert identity_of(there) != identity
    assert identity_of(here[:1]) != identity
    here[0].rename(here[0].with_name("c.jsonl"))
    assert identity_of([here[0].with_name("c.jsonl"), here[1]]) != identity
