"""What makes two contents the same: to a model with its instruction, to a loss as documents."""

from __future__ import annotations

import hashlib

from mme5core.images import image_bytes
from mme5core.types import Content


def content_key(text: str | None, image: bytes | None, instruction: str | None) -> bytes:
    """16 bytes, equal where the model would see the same.

    >>> content_key("a", None, None) == content_key("a", None, "")
    True
    >>> content_key("ab", None, "c") == content_key("a", None, "bc")
    False
    """
    picture = hashlib.sha256(image).digest() if image is not None else b""
    words = [(part or "").encode() for part in (text, instruction)]
    # Lengths first: without them "ab" + "c" would be "a" + "bc".
    head = f"{len(words[0])} {len(words[1])} {len(picture)} ".encode()
    return hashlib.sha256(head + b"".join(words) + picture).digest()[:16]


def document_key(content: Content) -> bytes:
    """8 bytes that are equal for equal documents: by text and by the picture's bytes."""
    digest = hashlib.sha256((content.text or "").encode() + b"\0")
    digest.update(b"" if content.image is None else image_bytes(content.image))
    return digest.digest()[:8]
