"""Keys that are equal for equal contents: as a model reads them under an instruction, or as documents of a loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mme5core.images import image_bytes
from mme5core.types import Content


def content_key(text: str | None, image: bytes | None, instruction: str | None, images: Sequence[bytes] = ()) -> bytes:
    """16 bytes, equal for contents that give the model the same input.

    Args:
        image: the one-picture case, as in `Content`.
        images: several pictures; their order counts.

    >>> content_key("a", None, None) == content_key("a", None, "")
    True
    >>> content_key("ab", None, "c") == content_key("a", None, "bc")
    False
    >>> content_key("a", b"x", None) == content_key("a", None, None, [b"x"])
    True
    >>> content_key("a", None, None, [b"x", b"y"]) == content_key("a", None, None, [b"y", b"x"])
    False
    """
    pictures = images if image is None else (image,)
    picture_digests = b"".join(hashlib.sha256(picture).digest() for picture in pictures)
    words = [(part or "").encode() for part in (text, instruction)]
    # Lengths come first: else "ab" + "c" would equal "a" + "bc", and a text could imitate a digest.
    head = f"{len(words[0])} {len(words[1])} {len(picture_digests)} ".encode()
    return hashlib.sha256(head + b"".join(words) + picture_digests).digest()[:16]


def document_key(content: Content) -> bytes:
    """8 bytes, equal for documents with equal text and equal bytes of the pictures."""
    if len(content.images) > 1:
        return content_key(content.text, None, None, [image_bytes(image) for image in content.images])[:8]
    digest = hashlib.sha256((content.text or "").encode() + b"\0")
    digest.update(b"" if content.image is None else image_bytes(content.image))
    return digest.digest()[:8]
