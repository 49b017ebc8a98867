"""Decoding of untrusted pictures to RGB: each becomes a picture, or a reason why it is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mme5core.storage import Unreachable, locate, without_credentials
from mme5core.types import ImageRef

MAX_PIXELS = 64_000_000
"""Pictures of more pixels are refused before they are decoded: 64 megapixels are 192 MB in RGB."""


IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))


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
    with grey, it would be learnt as a half-grey picture.

    Args:
        image: a path, encoded bytes, or a PIL image.
        max_pixels: width x height above which the picture is refused without decoding it.

    Raises:
        BadImage: `empty_image`, `missing_image`, `not_an_image`, `too_many_pixels` or `broken_image`.
    """
    picture = _open(image)
    width, height = picture.size
    if width * height > max_pixels:
        raise BadImage("too_many_pixels", f"{width} x {height} is above {max_pixels} pixels")
    try:
        picture.load()
        # `exif_transpose` copies only where an orientation is set; a copy of each picture would double the memory.
        picture = ImageOps.exif_transpose(picture) or picture
        return _to_rgb(picture)
    except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, struct.error) as error:
        raise BadImage("broken_image", str(error)) from None


def picture_size(image: ImageRef) -> tuple[int, int]:
    """Width and height of the picture that `load_rgb` returns, from the file's header alone.

    Raises:
        BadImage: as `load_rgb`, as far as the header shows the defect.
    """
    picture = _open(image)
    try:
        is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, struct.error) as error:
        raise BadImage("broken_image", str(error)) from None
    width, height = picture.size
    return (height, width) if is_turned else (width, height)


def image_bytes(image: ImageRef) -> bytes:
    """The encoded bytes of a picture: unchanged, read from its path, or a PIL image as PNG or TIFF.

    Raises:
        BadImage: `missing_image` or `unreachable_image`.
        TypeError: it is none of these.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        try:
            return (locate(image) if isinstance(image, str) else Path(image)).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", None) or error
            kind = "unreachable_image" if isinstance(error, Unreachable) else "missing_image"
            raise BadImage(kind, without_credentials(f"{image}: {reason}")) from None
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG" if image.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA") else "TIFF")
        return buffer.getvalue()
    raise TypeError(f"a picture is a path, bytes or a PIL image, got {type(image).__name__}")


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


def _open(image: ImageRef) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    data = image_bytes(image)
    if not data:
        raise BadImage("empty_image", "0 bytes")
    try:
        with warnings.catch_warnings():
            # `max_pixels` decides; Pillow's warning would be printed for pictures that we refuse anyway.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise BadImage("too_many_pixels", str(error)) from None
    except UnidentifiedImageError:
        raise BadImage("not_an_image", f"{len(data)} bytes in no known picture format") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadImage("broken_image", str(error)) from None


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
