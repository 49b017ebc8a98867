"""Everything bad at once: each input ends as a refused row or one clear line, and nothing good is lost."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mme5core.demo.teacher import DemoTeacher
from tests.ray.conftest import World, adds_up, read_parts, run_job, synth_args

pytestmark = pytest.mark.ray


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def odd_pictures() -> dict[str, bytes]:
    """Pictures that are unusual and good."""
    red = Image.new("RGB", (40, 30), (200, 20, 20))
    palette = Image.new("P", (20, 20), 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "flat": encoded(Image.new("RGB", (64, 1), (1, 2, 3)), "JPEG"),
        "three": encoded(Image.new("RGB", (64, 3), (1, 2, 3)), "PNG"),
        "sliver": encoded(Image.new("RGB", (2000, 1), (9, 9, 9)), "PNG"),
        "cmyk": encoded(Image.new("CMYK", (20, 20), (0, 200, 30, 0)), "JPEG"),
        "deep": encoded(Image.new("I;16", (20, 20), 40_000), "PNG"),
        "palette": encoded(palette, "PNG", transparency=3),
        "animated": encoded(red, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        "rotated": encoded(red, "JPEG", exif=exif),
        "good": encoded(Image.new("RGB", (50, 50), (0, 128, 0)), "JPEG"),
    }


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    """Pictures that cannot be used, each with the reason."""
    noise = encoded(Image.effect_noise((128, 128), 90).convert("RGB"), "JPEG")
    return {
        "cut": (noise[: len(noise) // 2], "broken_image"),
        "bomb": (png_bomb(), "too_many_pixels"),
        "text": (b"this is no picture", "not_an_image"),
        "empty": (b"", "empty_image"),
    }


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of odd and bad pictures with a repeated key, an empty file named .tar, and a tar that is cut off."""
    folder = tmp_path_factory.mktemp("bad")
    good, bad = odd_pictures(), bad_pictures()
    members = [(f"{key}.jpg", data) for key, data in good.items()]
    members += [(f"{key}.jpg", data) for key, (data, _) in bad.items()]
    again = encoded(Image.new("RGB", (50, 50), (0, 0, 128)), "JPEG")
    write_tar(folder / "00000.tar", [*members, ("good.jpg", again)])
    (folder / "00001.tar").write_bytes(b"")
    write_tar(folder / "00002.tar", [("whole.jpg", encoded(Image.new("RGB", (9, 9)), "PNG")), ("lost.jpg", again * 40)])
    whole = (folder / "00002.tar").read_bytes()
    (folder / "00002.tar").write_bytes(whole[:4096])
    return folder


def expected_reasons() -> dict[str, str]:
    reasons = {key: reason for key, (_, reason) in bad_pictures().items()}
    return reasons | {"good": "duplicate_id", "00001.tar": "broken_shard", "lost": "broken_shard"}


def test_embed_corpus_keeps_every_good_row_and_names_every_bad_one(corpus: Path, base: Path, tmp_path: Path) -> None:
    lines = [
        '{"id": "long", "text": "%s"}' % ("word 猫" * 200_000),
        '{"id": 7, "text": "a number for an id"}',
        '{"text": "no id"}',
        '{"id": "twice", "text": "first"}',
        '{"id": "twice", "text": "second"}',
        '{"id": "nothing", "text": " "}',
        '{"id": "number", "text": 5}',
        "no JSON",
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out"
    ended = run_job("embed-corpus", f"input=[{corpus}, {tmp_path}/texts.jsonl]", f"model={base}", f"output={output}")
    assert ended.code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    adds_up(output)
    texts = {"long", "7", "texts.jsonl:2", "twice"}
    assert {row["id"] for row in read_parts(output)} == {*odd_pictures(), "whole", *texts}
    reasons = {"nothing": "empty_row", "number": "text_not_a_string", "texts.jsonl:7": "not_json"}
    quarantined = pq.read_table(output / "_quarantine").to_pylist()
    found = {row["id"]: row["reason"] for row in quarantined}
    assert (expected_reasons() | reasons | {"twice": "duplicate_id"}).items() <= found.items()


def test_synth_keeps_every_good_picture_and_names_every_bad_one(
    corpus: Path, teacher: DemoTeacher, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = run_job(
        "synth",
        f"input={corpus}",
        f"output={out}",
        f"teacher.base_url={teacher.base_url}",
        "teacher.model=demo-teacher",
        "languages=[en]",
    )
    assert ended.code == 0, ended.stderr
    adds_up(out)
    quarantined = {row["id"]: row["reason"] for row in pq.read_table(out / "_quarantine").to_pylist()}
    assert {f"{key}-0": reason for key, reason in expected_reasons().items() if key != "good"}.items() <= (
        quarantined.items()
    )
    assert {row["id"] for row in read_parts(out)} == {f"{key}-0" for key in (*odd_pictures(), "whole")}


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["input=no/such/folder"], "no such file or folder"),
        (["input={empty}"], "holds no"),
        (["input={tars}", "model={broken}"], "no tokenizer"),
        (["input={tars}", "model=no/such/model/here"], "no model at"),
        (["input={tars}", "model=no/such/model/here", "--dry-run"], "no model at"),
        (["input={tars}", "bath_size=3"], "'bath_size'; did you mean 'batch_size'"),
        (["input={tars}", "batch_size=0"], "batch_size=0"),
        (["input={hollow}"], "no rows"),
        (["input={tars}", "prompt_style=foo"], "unknown prompt style 'foo'"),
        (["input={tars}", "adapter={empty}"], "no adapter in"),
        (["input={garbage}", "--dry-run"], "Parquet magic bytes not found"),
        pytest.param(
            ["input={garbage}"], "nothing in the input can be embedded: broken_shard 1", marks=pytest.mark.slow
        ),
        pytest.param(["input={tars}", "model={cut}"], "cannot load model", marks=pytest.mark.slow),
    ],
)
def test_a_bad_setting_is_one_line_and_code_2(
    args: list[str], part: str, world: World, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "hollow" / "00000.tar", [])
    broken = tmp_path / "broken"
    shutil.copytree(base, broken, ignore=shutil.ignore_patterns("tokenizer*"))
    cut = shutil.copytree(base, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    (tmp_path / "garbage.parquet").write_bytes(b"no Parquet" * 99)
    places = {
        "cut": cut,
        "garbage": tmp_path / "garbage.parquet",
        "empty": tmp_path / "empty",
        "tars": world.tars,
        "broken": broken,
        "hollow": tmp_path / "hollow",
    }
    given = [f"model={base}", f"output={tmp_path / 'out'}", *(arg.format(**places) for arg in args)]
    ended = run_job("embed-corpus", *given)
    assert ended.code == 2 == ended.summary["code"]
    assert part in ended.summary["reason"] and part in ended.stderr
    assert "Traceback" not in ended.stderr


NAMESPACE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]


def may_mount() -> bool:
    """As root, and elsewhere where users may have namespaces: not on every Linux, and on no other system."""
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def on_a_small_disk(folder: Path) -> list[str]:
    """Before a command: run it where a file system of 200 kB lies on the folder, which only it sees."""
    folder.mkdir()
    return [*NAMESPACE, "sh", "-c", f'mount -t tmpfs -o size=200k tmpfs "{folder}" && exec "$@"', "sh"]


@pytest.mark.skipif(not may_mount(), reason="this system lets nobody mount a small disk")
def test_a_full_disk_is_one_line_and_what_was_done_is_kept(world: World, teacher: DemoTeacher, tmp_path: Path) -> None:
    before = on_a_small_disk(tmp_path / "disk")
    ended = run_job("synth", *synth_args(world, teacher, tmp_path / "disk" / "out"), before=before)
    assert ended.code == 1 and ended.summary, ended.stdout + ended.stderr
    assert "No space left" in ended.summary["reason"] or "no space left" in ended.summary["reason"]
    assert "Traceback" not in ended.stderr
