"""Where the pictures of a corpus may come from, and pictures that are still at a server."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from mme5core.errors import first_line
from mme5core.images import MAX_PICTURE_BYTES, BadImage, bytes_in_text, image_bytes
from mme5core.readers.texts import writable
from mme5core.storage import Address, AnyPath, locate, without_credentials
from mme5core.web import HostRefused, HostRule, TooLarge, Unreachable, fetch

_REASONS: dict[type[Exception], str] = {
    TooLarge: "too_many_bytes",
    HostRefused: "host_not_allowed",
    Unreachable: "unreachable_image",
    FileNotFoundError: "missing_image",
    PermissionError: "missing_image",
    ValueError: "missing_image",  # no address
}
_HUB, _HUB_HOST = "hf://", "huggingface.co"


@dataclass(frozen=True, slots=True)
class RemotePicture:
    """A picture at a server, by its address; equal addresses are one picture."""

    place: Address
    rule: HostRule

    def read(self) -> bytes:
        """
        Raises:
            BadImage: `missing_image`, `unreachable_image`, `too_many_bytes` or `host_not_allowed`.
        """
        try:
            if self.place.is_web:
                return fetch(self.place.path, self.rule)
            if self.place.path.startswith(_HUB):
                self.rule.check(_HUB_HOST)
            if (size := self.place.info().size or 0) > MAX_PICTURE_BYTES:
                raise TooLarge(f"{size:,} bytes")
            return self.place.read_bytes()
        except Exception as error:  # the clients of some stores raise errors of their own
            reason = next((name for kind, name in _REASONS.items() if isinstance(error, kind)), "unreachable_image")
            problem = getattr(error, "strerror", None) or first_line(error)
            raise BadImage(reason, without_credentials(f"{self.place}: {problem}")) from None


Picture = bytes | RemotePicture


def picture_of(text: str, folder: AnyPath, pictures: str | None, rule: HostRule) -> Picture:
    """The picture that a row of a corpus names by a path, an address, or by its data in base64.

    Args:
        folder: of the file that names it; relative paths start from it, or from `pictures`.

    Raises:
        BadImage: `missing_image`; `outside_corpus`: it lies neither below `folder` nor below `pictures`.
    """
    inline = bytes_in_text(text)
    if inline is not None:
        return inline
    if "\0" in text or (not text.isascii() and writable(text) != text):
        raise BadImage("missing_image", f"{text!r} is no path")
    given, base = locate(text), locate(pictures) if pictures else folder
    if isinstance(given, Address):
        if given.is_web or given.path.startswith(_HUB):
            return RemotePicture(given, rule)
        root = _root_of(given, (base, folder))
        if root is None:
            raise _outside(text, folder)
        # The options say which server is asked with the user's keys: those of the user, never of a row.
        return RemotePicture(replace(given, options=root.options), rule)
    place = base / str(given)
    if isinstance(place, Address):
        if ".." in given.parts or given.is_absolute():
            raise _outside(text, folder)
        return RemotePicture(place, rule)
    if not is_below(place, *(root for root in (base, folder) if isinstance(root, Path))):
        raise _outside(text, folder)
    return image_bytes(place)


def is_below(file: Path, *folders: Path) -> bool:
    """Whether a file lies below one of the folders, with links followed.

    Links of a snapshot in the Hugging Face cache lead to the blobs beside it; these count as below it.
    """
    real = os.path.realpath(file)
    return any(real.startswith(root) for folder in folders for root in _real_roots(str(folder)))


def check_below(file: Path, folder: Path, pictures: str | None) -> None:
    """
    Raises:
        BadImage: `outside_corpus`, see `picture_of`.
    """
    allowed = [folder] + ([Path(pictures)] if pictures and isinstance(locate(pictures), Path) else [])
    if not is_below(file, *allowed):
        raise _outside(str(file), folder)


@lru_cache(maxsize=4096)
def _real_roots(folder: str) -> tuple[str, ...]:
    root = os.path.realpath(folder)
    own = root.rstrip("/") + "/"
    before, snapshots, _ = root.rpartition("/snapshots/")
    blobs = f"{before}/blobs/"
    return (own, blobs) if snapshots and os.path.isdir(blobs) else (own,)


def _root_of(address: Address, folders: tuple[AnyPath, ...]) -> Address | None:
    """The first of the folders that an address lies below."""
    if ".." in address.path.split("/"):
        return None
    roots = (folder for folder in folders if isinstance(folder, Address))
    return next((root for root in roots if address.path.startswith(f"{root.path.rstrip('/')}/")), None)


def _outside(text: str, folder: AnyPath) -> BadImage:
    where = without_credentials(f"{text} is not below {folder}")
    return BadImage("outside_corpus", f"{where}; pictures= allows another folder")
