"""Which picture formats are opened, and pictures freed of metadata that their decoder cannot read."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of what is opened, by content (JPEG: MPO too). Others run programs (EPS), or few people use them."""

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".ico", ".tga", ".heic", ".heif", ".jxl", ".svg", ".psd", ".eps", ".pcx"),
    )
)
"""Names of pictures. A file that is so called is a row; one whose content is in no format of FORMATS is refused."""

_BEGINNINGS = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
)
_LOOSE_BEGINNING = re.compile(
    rb"RIFF.{4}WEBP|\0\0\0.ftyp(?:avif|avis|mif1|msf1)|BM.{4}\0\0\0\0|P[1-6][ \t\r\n]+[0-9#]", re.DOTALL
)
_PNG, _WEBP = b"\x89PNG\r\n\x1a\n", (b"RIFF", b"WEBP")
_PNG_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_WEBP_DROPPED = {b"ICCP", b"XMP "}
_WEBP_ICC, _WEBP_EXIF, _WEBP_XMP = 0x20, 0x08, 0x04  # flags of the VP8X chunk
_APP0, _APP1, _APP14, _APP15, _COMMENT, _SCAN = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA


def is_a_beginning(head: bytes) -> bool:
    """Whether a file of one of FORMATS may begin with these 16 bytes or so.

    >>> is_a_beginning(bytes.fromhex("0000001c6674797061766966")), is_a_beginning(b"BM, or so they said")
    (True, False)
    """
    return head.startswith(_BEGINNINGS) or bool(_LOOSE_BEGINNING.match(head))


def without_metadata(data: bytes, *, keep_exif: bool) -> bytes:
    """The picture with its pixels and, if wanted, EXIF alone; unchanged where its format is not JPEG, PNG or WebP.

    What the decoders need for the colours stays: JPEG's APP0 and APP14, PNG's palette and transparency.
    """
    try:
        if data.startswith(_PNG):
            kept = _PNG_KEPT | ({b"eXIf"} if keep_exif else set())
            return _PNG + b"".join(whole for name, whole in _png_chunks(data) if name in kept)
        if data.startswith(b"\xff\xd8"):
            return _jpeg_without_metadata(data, keep_exif=keep_exif)
        if (data[:4], data[8:12]) == _WEBP:
            return _webp_without_metadata(data, keep_exif=keep_exif)
    except (struct.error, IndexError):
        pass  # the file ends inside a header
    return data


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, whole chunk) in order."""
    place = len(_PNG)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        yield data[place + 4 : place + 8], data[place : place + 12 + length]
        place += 12 + length


def _jpeg_without_metadata(data: bytes, *, keep_exif: bool) -> bytes:
    kept, place = [data[:2]], 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == _SCAN:
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        segment = data[place : place + 2 + length]
        is_metadata = (_APP0 < marker <= _APP15 and marker != _APP14) or marker == _COMMENT
        is_exif = marker == _APP1 and segment[4:10] == b"Exif\0\0"
        if not is_metadata or (is_exif and keep_exif):
            kept.append(segment)
        place += 2 + length
    return b"".join(kept) + data[place:]


def _webp_without_metadata(data: bytes, *, keep_exif: bool) -> bytes:
    dropped = _WEBP_DROPPED | (set() if keep_exif else {b"EXIF"})
    flags = _WEBP_ICC | _WEBP_XMP | (0 if keep_exif else _WEBP_EXIF)
    kept, place = [], 12
    while place + 8 <= len(data):
        name, (length,) = data[place : place + 4], struct.unpack_from("<I", data, place + 4)
        chunk = data[place : place + 8 + length + length % 2]
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~flags]) + chunk[9:]
        if name not in dropped:
            kept.append(chunk)
        place += len(chunk)
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
