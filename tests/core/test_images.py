"""Tests of decoding: every odd picture of the web becomes RGB at its own size, or a reason."""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mme5core import images
from mme5core.images import BadImage, bytes_in_text, image_bytes, image_hash, load_rgb, picture_size, to_jpeg


def encoded(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_of_header_alone(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def reason_of(image: object) -> str:
    with pytest.raises(BadImage) as caught:
        load_rgb(image)
    return caught.value.reason


def test_bytes_path_and_open_picture_give_the_same_pixels(tmp_path: Path) -> None:
    picture = noise(5, 3)
    (tmp_path / "a.png").write_bytes(encoded(picture, "PNG"))
    for image in (encoded(picture, "PNG"), tmp_path / "a.png", str(tmp_path / "a.png"), picture):
        found = load_rgb(image)
        assert (found.mode, found.size, found.tobytes()) == ("RGB", (5, 3), picture.tobytes())


def test_a_truncated_jpeg_is_refused_and_not_filled_with_grey() -> None:
    whole = encoded(noise(64, 64), "JPEG")
    assert load_rgb(whole).size == (64, 64)
    assert reason_of(whole[: len(whole) // 2]) == "broken_image"


def test_a_truncated_png_is_refused() -> None:
    whole = encoded(noise(64, 64), "PNG")
    assert reason_of(whole[: len(whole) // 2]) == "broken_image"


@pytest.mark.parametrize("size", [(7, 1), (1, 7), (1, 1), (3, 200)])
def test_a_thin_picture_keeps_its_size(size: tuple[int, int]) -> None:
    assert load_rgb(encoded(noise(*size), "PNG")).size == size


def test_cmyk_becomes_the_colour_that_its_ink_gives() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = load_rgb(encoded(cyan, "JPEG", quality=95)).getpixel((8, 8))  # type: ignore[misc]
    assert red < 40 < 200 < min(green, blue)


def test_a_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    found = np.asarray(load_rgb(encoded(Image.fromarray(values), "PNG")))
    assert found.tolist() == [[[0] * 3, [1] * 3, [128] * 3, [255] * 3]]


def test_a_float_grey_has_its_own_largest_value_as_white() -> None:
    values = np.array([[0.0, 1.0, 2.0, np.nan]], dtype=np.float32)
    found = np.asarray(load_rgb(Image.fromarray(values)))[0, :, 0]
    assert found.tolist() == [0, 127, 255, 0]


def test_a_palette_with_alpha_is_put_on_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    found = load_rgb(encoded(picture, "PNG", transparency=0))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]


@pytest.mark.parametrize(("mode", "colour"), [("LA", (0, 51)), ("RGBA", (0, 0, 0, 51))])
def test_alpha_mixes_with_white_in_its_share(mode: str, colour: tuple[int, ...]) -> None:
    # 51 / 255 of black on white leaves four fifths of white.
    found = load_rgb(encoded(Image.new(mode, (2, 2), colour), "PNG"))
    assert found.getpixel((0, 0)) == (204, 204, 204)


def test_an_rgb_picture_with_a_transparent_colour_is_put_on_white() -> None:
    picture = Image.new("RGB", (2, 1), (10, 20, 30))
    picture.putpixel((1, 0), (1, 2, 3))
    found = load_rgb(encoded(picture, "PNG", transparency=(10, 20, 30)))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (1, 2, 3)]


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_rgb(animation).getpixel((2, 2)) == (255, 0, 0)


def test_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (32, 16), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise: what was left comes to the top
    found = load_rgb(encoded(picture, "JPEG", exif=exif, quality=95))
    assert found.size == (16, 32)
    red, _, blue = found.getpixel((8, 4))  # type: ignore[misc]
    assert blue > 200 > 50 > red


@pytest.mark.parametrize("side", [30_000, 9_000])
def test_a_header_that_claims_too_many_pixels_is_refused_undecoded(side: int) -> None:
    assert reason_of(png_of_header_alone(side, side)) == "too_many_pixels"


def test_the_limit_on_pixels_is_inclusive() -> None:
    picture = encoded(noise(5, 4), "PNG")
    assert load_rgb(picture, max_pixels=20).size == (5, 4)
    with pytest.raises(BadImage, match="too_many_pixels: 5 x 4 is above 19 pixels"):
        load_rgb(picture, max_pixels=19)


def test_a_header_without_pixels_behind_it_is_a_broken_picture() -> None:
    assert reason_of(png_of_header_alone(40, 40)) == "broken_image"


def test_a_text_named_jpg_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404 Not Found</html>")
    assert reason_of(tmp_path / "a.jpg") == "not_an_image"


@pytest.mark.parametrize("data", [b"", bytearray(), memoryview(b"")])
def test_no_bytes_are_an_empty_image(data: object) -> None:
    assert reason_of(data) == "empty_image"


@pytest.mark.parametrize("name", ["gone.jpg", ".", "x" * 300, "nul\0inside.jpg"])
def test_a_path_that_cannot_be_read_is_a_missing_image(tmp_path: Path, name: str) -> None:
    assert reason_of(str(tmp_path / name)) == "missing_image"


def test_what_is_no_picture_at_all_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="got int"):
        load_rgb(5)


def test_the_hash_of_a_file_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    data = encoded(noise(3, 3), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert image_hash(data) == image_hash(tmp_path / "a.png") == hashlib.sha256(data).hexdigest()


def test_open_pictures_of_other_shape_mode_or_pixels_have_other_hashes() -> None:
    pictures = [Image.new("L", (4, 2)), Image.new("L", (2, 4)), Image.new("P", (4, 2)), Image.new("L", (4, 2), 1)]
    assert len({image_hash(picture) for picture in pictures}) == 4
    assert image_hash(Image.new("L", (4, 2))) == image_hash(pictures[0])


def test_palette_pictures_of_other_colours_have_other_hashes() -> None:
    red, blue = Image.new("P", (2, 2)), Image.new("P", (2, 2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert load_rgb(red).tobytes() != load_rgb(blue).tobytes()
    assert image_hash(red) != image_hash(blue)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_an_open_picture_becomes_bytes_that_hold_the_same_picture(mode: str) -> None:
    picture = noise(6, 4).convert(mode)
    assert load_rgb(image_bytes(picture)).tobytes() == load_rgb(picture).tobytes()


def test_jpeg_keeps_a_flat_colour_within_its_rounding() -> None:
    found = load_rgb(to_jpeg(Image.new("RGB", (16, 16), (200, 100, 50))))
    assert np.abs(np.asarray(found).astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_by_the_header_is_that_of_the_loaded_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG", exif=exif)
    assert picture_size(buffer.getvalue()) == load_rgb(buffer.getvalue()).size
    with pytest.raises(BadImage, match="not_an_image"):
        picture_size(b"no picture")


def turned_by(orientation: int, file_format: str, **options: Any) -> bytes:
    """`noise(40, 20)`, stored so that the orientation gives it back."""
    ways = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_270}
    back = ways.get(orientation)
    picture = noise(40, 20) if back is None else noise(40, 20).transpose(back)
    if file_format == "TIFF":
        return encoded(picture, file_format, tiffinfo={274: orientation}, **options)
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(picture, file_format, exif=exif, **options)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_a_picture_is_the_same_in_every_container_and_turned_once(
    file_format: str, options: dict[str, Any], orientation: int
) -> None:
    data = turned_by(orientation, file_format, **options)
    assert picture_size(data) == (40, 20)
    assert load_rgb(data).tobytes() == noise(40, 20).tobytes()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_turn_that_only_xmp_names_is_the_same_in_tiff_and_png(compression: str | None) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    png = encoded(noise(20, 40), "PNG", pnginfo=text)
    tiff = encoded(noise(20, 40), "TIFF", tiffinfo={700: XMP}, compression=compression)
    assert picture_size(png) == picture_size(tiff) == (40, 20)
    assert load_rgb(png).tobytes() == load_rgb(tiff).tobytes()


def tiff_of_a_tile(kind: int, width: bytes) -> bytes:
    """A header of 8 x 8 pixels, and of one tile of nothing with this width and the height 2^20."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, 0), (323, 1 << 20), (324, 8), (325, 8)]
    entries = [struct.pack("<HHII", tag, 4, 1, number) for tag, number in tags]
    entries[6] = struct.pack("<HHI", 322, kind, 1 if kind in (4, 11) else 4) + width
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)


def test_a_tile_that_is_far_larger_than_its_picture_is_refused() -> None:
    with pytest.raises(BadImage, match="too_many_pixels: a tile of 1048576 x 1048576"):
        load_rgb(tiff_of_a_tile(4, struct.pack("<I", 1 << 20)))


@pytest.mark.parametrize("kind", [2, 7, 11])  # a text, bytes, a float that is NaN
def test_a_tile_whose_width_is_no_number_is_a_broken_picture(kind: int) -> None:
    with pytest.raises(BadImage, match="broken_image"):
        load_rgb(tiff_of_a_tile(kind, b"\xff\xff\xff\x7f"))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
@pytest.mark.parametrize("alphabet", [b"+/", b"-_"])
def test_a_picture_in_base64_is_known_by_its_first_bytes(file_format: str, alphabet: bytes) -> None:
    for size in ((1, 1), (40, 20)):
        data = encoded(Image.new("RGB", size), file_format)
        text = base64.b64encode(data, altchars=alphabet).decode()
        assert bytes_in_text(text) == (data if len(text) >= 40 else None)


@pytest.mark.parametrize("text", ["BM" + "a" * 60, "Qk0" + "x" * 60, "pictures/" + "a" * 60 + ".jpg", "AAAA" * 20])
def test_a_long_path_is_no_base64(text: str) -> None:
    assert bytes_in_text(text) is None


def with_metadata(file_format: str) -> bytes:
    """A good picture, turned by EXIF, with a megabyte of zipped text or a comment that its decoder chokes on."""
    data = turned_by(6, file_format)
    if file_format == "PNG":
        text = b"Comment\0\0" + zlib.compress(b"x" * 5_000_000)
        chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
        return data[:33] + chunk + data[33:]
    return data[:2] + b"\xff\xe2" + struct.pack(">H", 20) + b"ICC_PROFILE\0\x01\x00bad!" + data[2:]


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_metadata_that_cannot_be_read_cost_neither_the_picture_nor_its_orientation(file_format: str) -> None:
    data = with_metadata(file_format)
    assert picture_size(data) == load_rgb(data).size == (40, 20)
    assert load_rgb(data).tobytes() == load_rgb(turned_by(6, file_format)).tobytes()


def test_damaged_exif_is_ignored() -> None:
    whole = turned_by(6, "JPEG")
    start = whole.index(b"Exif\0\0") + 6
    for place in range(start, start + 18):
        damaged = whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :]
        assert picture_size(damaged) == load_rgb(damaged).size


def test_what_a_decoder_raises_is_a_broken_picture() -> None:
    y, x = np.mgrid[0:160, 0:240]
    slopes = np.dstack([x * 3 % 256, y * 5 % 256, (x + y) % 256]).astype(np.uint8)
    avif = encoded(Image.fromarray(slopes), "AVIF")
    assert load_rgb(avif).size == (240, 160)
    assert reason_of(avif[: len(avif) // 2] + bytes(len(avif) - len(avif) // 2)) == "broken_image"


def test_a_format_that_runs_a_program_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"
    assert reason_of(eps) == "not_an_image"
    assert not (tmp_path / "was_run").exists()


def test_a_file_above_the_limit_of_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(5, 3), "PNG"))
    size = (tmp_path / "a.png").stat().st_size
    monkeypatch.setattr(images, "MAX_PICTURE_BYTES", size - 1)
    assert reason_of(tmp_path / "a.png") == "too_many_bytes"
    monkeypatch.setattr(images, "MAX_PICTURE_BYTES", size)
    assert load_rgb(tmp_path / "a.png").size == (5, 3)


def test_an_open_picture_that_is_rgb_already_stays_the_callers(tmp_path: Path) -> None:
    picture = noise(5, 3)
    load_rgb(picture).putpixel((0, 0), (1, 2, 3))
    assert picture.tobytes() == noise(5, 3).tobytes()
