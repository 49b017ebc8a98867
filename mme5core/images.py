"""Decoding of untrusted pictures to RGB: each becomes a picture, or a reason why it is refused."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from mme5core.errors import first_line
from mme5core.picture_formats import FORMATS, is_a_beginning, without_metadata
from mme5core.storage import locate, without_credentials
from mme5core.types import ImageRef
from mme5core.web import Unreachable

# Pillow would print a line for each picture whose metadata are damaged, and for those that `max_pixels` refuses anyway.
# Not catch_warnings around each call: it is not safe in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.\w*ImagePlugin")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

MAX_PIXELS = 64_000_000
"""Pictures of more pixels are refused before they are decoded: 64 megapixels are 192 MB in RGB."""
MAX_PICTURE_BYTES = 1 << 29
"""Larger files are refused before they are read."""
MOST_SCANS = 500
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""
_SHORTEST_BASE64 = 40  # the smallest GIF has 35 bytes
_BASE64 = re.compile(r"[A-Za-z0-9+/_%=\s-]*")


class BadImage(ValueError):
    """A picture that cannot be used: `reason` names a counter, `detail` explains it to users."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def load_rgb(image: ImageRef, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as RGB, at its own size.

    EXIF orientation is applied, transparency is blended onto white, 16-bit and float greys are scaled to 8 bits,
    CMYK and palettes are converted; of an animation, the first frame is taken. A truncated file is refused: filled
    with grey, it would be learnt as a half-grey picture. Metadata that cannot be read is ignored.

    Args:
        image: a path, encoded bytes, or a PIL image.
        max_pixels: width x height above which the picture is refused without decoding it.

    Raises:
        BadImage: `empty_image`, `missing_image`, `not_an_image`, `too_many_pixels` or `broken_image`.
    """
    if isinstance(image, Image.Image):
        picture = _rgb(image, max_pixels)
        return picture.copy() if picture is image else picture
    data = image_bytes(image)
    try:
        return _rgb(_open(data), max_pixels)
    except BadImage as error:
        if error.reason != "broken_image":
            raise
        for keep_exif in (True, False):
            bare = without_metadata(data, keep_exif=keep_exif)
            if bare != data:
                try:
                    return _rgb(_open(bare), max_pixels)
                except BadImage:
                    continue
        raise


def picture_size(image: ImageRef) -> tuple[int, int]:
    """Width and height of the picture that `load_rgb` returns, from the file's header where that is enough.

    Raises:
        BadImage: as `load_rgb`, as far as the header shows the defect.
    """
    try:
        picture = image if isinstance(image, Image.Image) else _open(image_bytes(image))
    except BadImage as error:
        if error.reason != "broken_image":
            raise
        return load_rgb(image).size  # its metadata may be all that is broken
    width, height = picture.size
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and ExifTags.Base.Orientation in picture.tag_v2:
        return width, height  # Pillow gives the size after that turn, but not after one that only XMP names
    return (height, width) if _orientation(picture) in (5, 6, 7, 8) else (width, height)


def image_bytes(image: ImageRef) -> bytes:
    """The encoded bytes of a picture: unchanged, read from its path or address, or a PIL image as PNG or TIFF.

    A text that is the picture itself, as a "data:" address or in base64, is decoded.

    Raises:
        BadImage: `missing_image`, `unreachable_image` or `too_many_bytes`.
        TypeError: it is none of these.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        inline = bytes_in_text(image) if isinstance(image, str) else None
        return _stored_bytes(image) if inline is None else inline
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG" if image.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA") else "TIFF")
        return buffer.getvalue()
    raise TypeError(f"a picture is a path, bytes or a PIL image, got {type(image).__name__}")


def bytes_in_text(text: str) -> bytes | None:
    """The bytes of a picture that a text holds as a "data:" address or in base64; None for a path or an address.

    Raises:
        BadImage: a "data:" address that cannot be decoded.
    """
    if text[:5].lower() == "data:":
        head, _, body = text.partition(",")
        try:
            return _from_base64(body)
        except ValueError:
            raise BadImage("not_an_image", f"{head[:80]}: its data are not base64") from None
    if len(text) < _SHORTEST_BASE64 or not _BASE64.fullmatch(text, 0, _SHORTEST_BASE64):
        return None
    try:
        if is_a_beginning(_from_base64(text[:24])):
            return _from_base64(text)
    except ValueError:
        pass  # a path that begins so
    return None


def _from_base64(text: str) -> bytes:
    """
    Raises:
        ValueError: it is no base64.
    """
    letters = "".join(text.split()).replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")
    letters = letters.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _stored_bytes(image: str | os.PathLike[str]) -> bytes:
    try:
        file = locate(image) if isinstance(image, str) else Path(image)
        if isinstance(file, Path) and file.exists():
            # A pipe would block for ever, a device would never end.
            if not file.is_file():
                raise BadImage("missing_image", f"{image}: not a regular file")
            if file.stat().st_size > MAX_PICTURE_BYTES:
                raise BadImage("too_many_bytes", f"{image}: {file.stat().st_size:,} bytes")
        return file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, BadImage):
            raise
        reason = getattr(error, "strerror", None) or error
        kind = "unreachable_image" if isinstance(error, Unreachable) else "missing_image"
        raise BadImage(kind, without_credentials(f"{image}: {reason}")) from None


def image_hash(image: ImageRef) -> str:
    """sha256 of a picture's encoded bytes, or of the mode, size and pixels of a PIL image."""
    if isinstance(image, Image.Image):
        digest = hashlib.sha256(f"{image.mode}{image.size}".encode())
        digest.update(image.tobytes())
        if image.palette is not None:
            digest.update(image.palette.mode.encode() + image.palette.tobytes())
        return digest.hexdigest()
    return hashlib.sha256(image_bytes(image)).hexdigest()


def to_jpeg(picture: Image.Image, *, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def thumbnail_url(image: ImageRef | None, size: int) -> str:
    """A data URL of the picture, at most `size` pixels wide and high; empty for None and for an unreadable picture."""
    try:
        picture = load_rgb(image) if image is not None else None
    except BadImage:
        picture = None
    if picture is None:
        return ""
    picture.thumbnail((size, size))
    return "data:image/jpeg;base64," + base64.b64encode(to_jpeg(picture, quality=85)).decode()


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImage("empty_image", "0 bytes")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MOST_SCANS:
        raise BadImage("broken_image", f"a JPEG of more than {MOST_SCANS} scans")  # each would be decoded
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise BadImage("not_an_image", f"{len(data)} bytes in no known picture format") from None
    except Exception as error:  # decoders raise whatever they like
        raise BadImage("broken_image", first_line(error)) from None


def _orientation(picture: Image.Image) -> int:
    """The orientation by EXIF, else by XMP; 1 where there is none, or none that can be read."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF: the pixels are whole, and nobody knows how they should be turned
        return 1


def _rgb(picture: Image.Image, max_pixels: int) -> Image.Image:
    width, height = picture.size
    if width * height > max_pixels:
        raise BadImage("too_many_pixels", f"{width} x {height} is above {max_pixels} pixels")
    try:
        _check_tile(picture, max_pixels)
        picture.load()
        is_turned = isinstance(picture, TiffImagePlugin.TiffImageFile)  # by Pillow
        turn = None if is_turned else _TURNS.get(_orientation(picture))
        return _to_rgb(picture if turn is None else picture.transpose(turn))
    except BadImage:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise BadImage("broken_image", first_line(error)) from None


def _check_tile(picture: Image.Image, max_pixels: int) -> None:
    """
    Raises:
        BadImage: libtiff would make room for a tile that is much larger than the picture.
    """
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        tags = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
        width, height = (int(picture.tag_v2.get(tag, 0)) for tag in tags)
        if width * height > max_pixels:
            raise BadImage("too_many_pixels", f"a tile of {width} x {height} is above {max_pixels} pixels")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _scale_to_8_bits(picture)
    if picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _scale_to_8_bits(picture: Image.Image) -> Image.Image:
    grey = np.asarray(picture, dtype=np.float64)
    # 16-bit files open as "I;16" or "I" (0..65535); "F" has no fixed range: its largest number becomes white.
    white = 65535.0 if picture.mode != "F" else max(float(np.nanmax(grey, initial=0.0)), 1e-12)
    scaled = np.clip(np.nan_to_num(grey) * (255.0 / white), 0, 255).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")
