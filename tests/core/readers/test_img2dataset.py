"""Tests of the tar reader: every picture with its bytes, every loss with its reason, whatever state the tar is in."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mme5core.readers import CorpusRow, ReadOptions, read_rows
from mme5core.readers.img2dataset import read_picture
from mme5core.schemas import IMG2DATASET

BLOCK = tarfile.BLOCKSIZE
ONE, TWO, THREE = (bytes([number]) * (BLOCK + 88) for number in (1, 2, 3))
# One picture: a header, two blocks of data.
PICTURE_BYTES = 3 * BLOCK


def tar_of(shard: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return shard


def sidecar_of(shard: Path, rows: Sequence[tuple[str, str, str | None]]) -> None:
    records = [{"key": key, "status": status, "error_message": error} for key, status, error in rows]
    pq.write_table(pa.Table.from_pylist(records, IMG2DATASET), shard.with_suffix(".parquet"))


def three(tmp_path: Path) -> Path:
    return tar_of(tmp_path / "00000.tar", [("000000.jpg", ONE), ("000001.jpg", TWO), ("000002.jpg", THREE)])


def outcome(row: CorpusRow) -> tuple[str, str | bytes | None]:
    return row.id, row.refused.reason if row.refused else row.image


def outcomes(shard: Path) -> list[tuple[str, str | bytes | None]]:
    return [outcome(row) for row in read_rows(shard)]


def test_pictures_come_in_order_without_what_lies_beside_them(tmp_path: Path) -> None:
    members = [("000000.jpg", ONE), ("000000.txt", b"a cat"), ("000000.json", b"{}"), ("sub/000001.png", TWO)]
    rows = list(read_rows(tar_of(tmp_path / "00000.tar", members)))
    assert [outcome(row) for row in rows] == [("000000", ONE), ("sub/000001", TWO)]
    assert [row.text for row in rows] == [None, None]


def test_a_picture_is_found_again_by_its_offset(tmp_path: Path) -> None:
    shard = three(tmp_path)
    rows = list(read_rows(shard))
    assert [row.offset for row in rows] == [BLOCK, BLOCK + PICTURE_BYTES, BLOCK + 2 * PICTURE_BYTES]
    assert [read_picture(shard, row.offset, len(ONE)) for row in rows] == [ONE, TWO, THREE]


def test_rows_that_failed_stand_in_the_parquet_alone_and_are_refused_as_such(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "00002.tar", [("000021.jpg", ONE)])
    sidecar_of(
        shard,
        [
            ("000020", "failed_to_download", "HTTP Error 404: File not found"),
            ("000021", "success", None),
            ("000022", "failed_to_resize", None),
            ("000023", "success", None),
        ],
    )
    rows = list(read_rows(shard))
    assert [outcome(row) for row in rows] == [
        ("000021", ONE),
        ("000020", "failed_to_download"),
        ("000022", "failed_to_resize"),
        ("000023", "missing_from_tar"),
    ]
    assert [row.refused.detail for row in rows if row.refused] == ["HTTP Error 404: File not found", "", ""]


def test_a_parquet_of_other_things_beside_the_tar_is_refused_by_name(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "00000.tar", [("a.jpg", ONE)])
    pq.write_table(pa.table({"id": ["b"], "text": ["c"]}), shard.with_suffix(".parquet"))
    assert outcomes(shard) == [("a", ONE), ("00000.parquet", "not_a_sidecar")]


def test_a_broken_parquet_beside_the_tar_costs_no_picture(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "00000.tar", [("a.jpg", ONE)])
    shard.with_suffix(".parquet").write_bytes(b"PAR1 half")
    assert outcomes(shard) == [("a", ONE), ("00000.parquet", "broken_shard")]


def test_an_upper_case_suffix_is_a_picture(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "00000.tar", [("a.JPG", ONE), ("b.Jpeg", TWO), ("c.TXT", b"text")])
    assert outcomes(shard) == [("a", ONE), ("b", TWO)]


def test_duplicate_keys_are_two_rows_each_with_its_own_bytes(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "00000.tar", [("a.jpg", ONE), ("a.jpg", TWO), ("a.png", THREE)])
    rows = list(read_rows(shard))
    assert [outcome(row) for row in rows] == [("a", ONE), ("a", TWO), ("a", THREE)]
    assert [read_picture(shard, row.offset, len(ONE)) for row in rows] == [ONE, TWO, THREE]


def test_a_picture_of_no_bytes_is_left_to_the_decoder_to_refuse(tmp_path: Path) -> None:
    assert outcomes(tar_of(tmp_path / "00000.tar", [("a.jpg", b""), ("b.jpg", TWO)])) == [("a", b""), ("b", TWO)]


def test_a_folder_is_no_row_and_a_link_is_refused_by_name(tmp_path: Path) -> None:
    shard = tmp_path / "00000.tar"
    with tarfile.open(shard, "w") as tar:
        for name, kind in (("a.jpg", tarfile.DIRTYPE), ("b.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            tar.addfile(info)
    assert outcomes(shard) == [("b.jpg", "not_a_regular_file")]


CUTS = {
    "inside the first picture": (BLOCK + 100, []),
    "inside the second picture": (PICTURE_BYTES + BLOCK + 100, [("000000", ONE)]),
    "inside the second header": (PICTURE_BYTES + 200, [("000000", ONE)]),
    "between two pictures": (2 * PICTURE_BYTES, [("000000", ONE), ("000001", TWO)]),
}


@pytest.mark.parametrize("where", CUTS)
def test_a_truncated_tar_gives_the_rows_before_the_break_and_then_says_so(tmp_path: Path, where: str) -> None:
    num_bytes, kept = CUTS[where]
    shard = three(tmp_path)
    shard.write_bytes(shard.read_bytes()[:num_bytes])
    *before, last = outcomes(shard)
    assert [row for row in before if isinstance(row[1], bytes)] == kept
    assert last == ("00000.tar", "broken_shard")


def test_a_header_that_rotted_is_a_break_and_not_the_end(tmp_path: Path) -> None:
    shard = three(tmp_path)
    data = bytearray(shard.read_bytes())
    data[PICTURE_BYTES : PICTURE_BYTES + 8] = b"\xff" * 8
    shard.write_bytes(data)
    assert outcomes(shard) == [("000000", ONE), ("00000.tar", "broken_shard")]


def test_what_a_truncated_tar_lost_is_refused_by_its_key(tmp_path: Path) -> None:
    shard = three(tmp_path)
    sidecar_of(shard, [(f"00000{number}", "success", None) for number in range(4)])
    shard.write_bytes(shard.read_bytes()[: 2 * PICTURE_BYTES + BLOCK + 1])
    found = outcomes(shard)
    cut = [("000002", "broken_shard"), ("00000.tar", "broken_shard")]
    assert found == [("000000", ONE), ("000001", TWO), *cut, ("000003", "missing_from_tar")]


@pytest.mark.parametrize("data", [b"", b"<html>404 Not Found</html>", b"\x1f\x8b" + b"gzip" * 200])
def test_a_file_that_is_no_tar_is_one_broken_shard(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "00000.tar").write_bytes(data)
    assert outcomes(tmp_path / "00000.tar") == [("00000.tar", "broken_shard")]


def test_a_missing_tar_is_one_broken_shard(tmp_path: Path) -> None:
    assert outcomes(tmp_path / "gone.tar") == [("gone.tar", "broken_shard")]


def test_a_tar_with_no_members_is_whole_and_its_failed_rows_are_refused(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "00000.tar", [])
    assert outcomes(shard) == []
    sidecar_of(shard, [("000000", "failed_to_download", "timed out")])
    assert outcomes(shard) == [("000000", "failed_to_download")]


def rows_by_id(shard: Path) -> dict[str, str | bytes | None]:
    return dict(outcomes(shard))


def test_keys_are_paths_without_their_last_suffix_below_the_tars_folder(tmp_path: Path) -> None:
    names = [
        "22.05.jpg",
        "Mr.Smith.jpg",
        "0001.input.jpg",
        "0001.target.jpg",
        "train/0001.jpg",
        "./val/0001.jpg",
        "a.AVIF",
    ]
    shard = tar_of(tmp_path / "00000.tar", [(name, ONE) for name in names])
    keys = ["22.05", "Mr.Smith", "0001.input", "0001.target", "train/0001", "val/0001", "a"]
    assert [row.id for row in read_rows(shard)] == keys
    label = ReadOptions(label="part1/00000.tar")
    assert [row.id for row in read_rows(shard, label)] == [f"part1/{key}" for key in keys]


def test_a_member_that_is_neither_a_picture_nor_its_text_is_refused_by_name(tmp_path: Path) -> None:
    shard = tar_of(
        tmp_path / "00000.tar", [("a.jpg", ONE), ("a.cls", b"7"), ("b.mp4", TWO), ("c", TWO), ("d.tar", TWO)]
    )
    assert outcomes(shard) == [("a", ONE)] + [(name, "unknown_suffix") for name in ("b.mp4", "c", "d.tar")]


def test_a_second_archive_in_the_file_is_read_too(tmp_path: Path) -> None:
    first = tar_of(tmp_path / "1.tar", [("a.jpg", ONE)]).read_bytes()
    second = tar_of(tmp_path / "2.tar", [("b.jpg", TWO), ("c.jpg", THREE)]).read_bytes()
    both = tmp_path / "both.tar"
    both.write_bytes(first + second)
    rows = list(read_rows(both))
    assert [outcome(row) for row in rows] == [("a", ONE), ("b", TWO), ("c", THREE)]
    assert [read_picture(both, row.offset, len(ONE)) for row in rows] == [ONE, TWO, THREE]
    both.write_bytes(first + b"rubbish" * 100)
    assert outcomes(both) == [("a", ONE), ("both.tar", "broken_shard")]


def header(name: str, size_field: bytes) -> bytes:
    """A header whose checksum is right, with this in the field of its size."""
    raw = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = size_field
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize(
    "size_field", [b"\xff" * 10 + b"\xfe\x00", b"\x80" + b"\x00" * 3 + b"\x01" + b"\x00" * 7, b"\xff" * 12]
)
def test_a_header_of_an_impossible_size_ends_the_shard_and_not_the_memory(tmp_path: Path, size_field: bytes) -> None:
    shard = tar_of(tmp_path / "00000.tar", [("a.jpg", ONE)])
    shard.write_bytes(shard.read_bytes()[:PICTURE_BYTES] + header("b.jpg", size_field) + bytes(2 * BLOCK))
    kept, *refused = outcomes(shard)
    assert kept == ("a", ONE) and refused[-1] == ("00000.tar", "broken_shard") and len(refused) <= 2


def test_a_sparse_member_is_refused_without_being_filled(tmp_path: Path) -> None:
    shard = tmp_path / "00000.tar"
    petabyte = str(1 << 50)
    sparse = {
        "major": "0",
        "minor": "1",
        "name": "b.png",
        "size": petabyte,
        "realsize": petabyte,
        "map": f"{petabyte},0",
    }
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("a.png", ONE), ("b.png", None), ("c.png", TWO)):
            info = tarfile.TarInfo(name)
            if data is None:
                info.pax_headers = {f"GNU.sparse.{key}": entry for key, entry in sparse.items()}
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    assert outcomes(shard) == [("a", ONE), ("b.png", "not_a_regular_file"), ("c", TWO)]


def test_keys_of_the_parquet_may_be_numbers_or_bytes(tmp_path: Path) -> None:
    shard = tar_of(tmp_path / "00000.tar", [("000000001.jpg", ONE)])
    for keys in ([1, 2], [b"000000001", b"2"]):
        table = pa.table({"key": keys, "status": [b"success", b"failed_to_download"], "error_message": [None, 404]})
        pq.write_table(table, shard.with_suffix(".parquet"))
        assert outcomes(shard) == [("000000001", ONE), ("2", "failed_to_download")]
