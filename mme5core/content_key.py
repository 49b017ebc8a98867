"""What makes two contents the same: to a model with its instruction, to a loss as documents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mme5core.images import image_bytes
from mme5core.types import Content


def content_key(text: str | None, image: bytes | None, instruction: str | None, images: Sequence[bytes] = ()) -> bytes:
    """16 bytes, equal where the model would see the same.

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
    # Lengths first: without them "ab" + "c" would be "a" + "bc", and two digests might be a text and one digest.
    head = f"{len(words[0])} {len(words[1])} {len(picture_digests)} ".encode()
    return hashlib.sha256(head + b"".join(words) + picture_digests).digest()[:16]


def document_key(content: Content) -> bytes:
    """8 bytes that are equal for equal documents: by text and by the pictures' bytes."""
    if len(content.images) > 1:
        return content_key(content.text, None, None, [image_bytes(image) for image in content.images])[:8]
    digest = hashlib.sha256((content.text or "").encode() + b"\0")
    digest.update(b"" if content.image is None else image_bytes(content.image))
    return digest.digest()[:8]
