"""The demo corpus: emoji drawn from a colour font, written in the layout of img2dataset."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from mme5core.demo.annotations import Emoji
from mme5core.images import to_jpeg
from mme5core.schemas import IMG2DATASET

FONT_SIZE = 109  # the only size that the font's bitmaps have
GLYPH_SIZE = (136, 128)
IMAGE_SIZE = 128
ROWS_PER_SHARD = 500
NUM_FAILED = 40  # rows of failed downloads, which are in the Parquet file but not in the tar


@dataclass(frozen=True, slots=True)
class Picture:
    """One emoji in the corpus; `key` is its id in every job."""

    key: str
    emoji: Emoji
    sha256: str


@dataclass(frozen=True, slots=True)
class Corpus:
    pictures: list[Picture]
    num_read: int
    refused: dict[str, int]


def draw(emoji: Emoji, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The emoji on white; None if the font has no picture of it."""
    if font.getlength(emoji.characters) > GLYPH_SIZE[0] + 1:
        return None  # several glyphs: the font has none for the sequence
    canvas = Image.new("RGBA", GLYPH_SIZE, (255, 255, 255, 255))
    ImageDraw.Draw(canvas).text((0, 0), emoji.characters, font=font, embedded_color=True)
    picture = canvas.convert("RGB")
    if len(picture.getcolors(maxcolors=1 << 16) or "many") < 2:
        return None
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def write_corpus(folder: Path, emoji: list[Emoji], font_file: Path) -> Iterator[int | Corpus]:
    """Write tar shards with a Parquet and a stats file each; yields the number of rows done, and last the corpus.

    About every fiftieth row is an invented failed download, so that the jobs have some to refuse.
    """
    font = ImageFont.truetype(str(font_file), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Emoji | None] = []
    spacing = max(1, len(emoji) // NUM_FAILED)
    for index, known in enumerate(emoji):
        if index % spacing == 0:
            rows.append(None)
        rows.append(known)
    pictures: list[Picture] = []
    num_failed = 0
    for shard, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        records: list[dict[str, Any]] = []
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index, item in enumerate(rows[start : start + ROWS_PER_SHARD]):
                key = f"{shard:05d}{index:04d}"
                picture = None if item is None else draw(item, font)
                if item is None or picture is None:
                    records.append(_failed_record(key, item))
                    num_failed += 1
                    continue
                data = to_jpeg(picture, quality=92)
                record = _record(key, item, data)
                records.append(record)
                _add(tar, f"{key}.jpg", data)
                _add(tar, f"{key}.json", json.dumps(record, indent=4).encode())
                _add(tar, f"{key}.txt", item.english_name.encode())
                pictures.append(Picture(key, item, record["sha256"]))
        pq.write_table(pa.Table.from_pylist(records, IMG2DATASET), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(_stats(records), indent=4))
        yield min(start + ROWS_PER_SHARD, len(rows))
    yield Corpus(pictures, len(rows), {"failed_to_download": num_failed})


def _record(key: str, emoji: Emoji, data: bytes) -> dict[str, Any]:
    return {
        "NSFW": "UNLIKELY",
        "similarity": None,
        "punsafe": None,
        "pwatermark": None,
        "LANGUAGE": "en",
        "caption": emoji.english_name,
        "url": f"https://example.org/emoji/{emoji.id}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": IMAGE_SIZE,
        "height": IMAGE_SIZE,
        "original_width": GLYPH_SIZE[0],
        "original_height": GLYPH_SIZE[1],
        "exif": "{}",
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _failed_record(key: str, emoji: Emoji | None) -> dict[str, Any]:
    name = f"{emoji.id}.jpg" if emoji else f"gone-{key}.jpg"
    return dict.fromkeys(IMG2DATASET.names) | {
        "NSFW": "UNLIKELY",
        "LANGUAGE": "en",
        "caption": emoji.english_name if emoji else "a picture that is gone",
        "url": f"https://example.org/emoji/{name}",
        "key": key,
        "status": "failed_to_download",
        "error_message": "HTTP Error 404: Not Found",
    }


def _stats(records: list[dict[str, Any]]) -> dict[str, Any]:
    successes = sum(record["status"] == "success" for record in records)
    failures = len(records) - successes
    return {
        "count": len(records),
        "successes": successes,
        "failed_to_download": failures,
        "failed_to_resize": 0,
        "status_dict": {"success": successes, "HTTP Error 404: Not Found": failures},
    }


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
