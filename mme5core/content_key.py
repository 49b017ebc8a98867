"""What makes two contents the same to a model: text, instruction and picture bytes."""

from __future__ import annotations

import hashlib


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
