"""One row of a corpus, as every reader yields it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mme5core.readers.picture_places import Picture, RemotePicture, picture_of
from mme5core.readers.texts import as_text, writable
from mme5core.storage import AnyPath
from mme5core.types import Rejected
from mme5core.web import HostRule

SIDES = ("both", "query", "target")
LONGEST_DETAIL = 400
_REASON = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """A user's options for reading a corpus.

    Args:
        side: rows to read from files of queries and candidates: "query", "target" or "both".
        pictures: the folder or address that paths of pictures are relative to; None: the file's own folder.
        label: the shard's place below the input, for ids; empty: its file name.
        columns: columns of the source to keep beside each row.
        allow_hosts: see `HostRule`.
        fetch: read pictures at servers at once; False: give them as `RemotePicture`s.
    """

    side: str = "both"
    pictures: str | None = None
    label: str = ""
    columns: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] | None = None
    fetch: bool = True

    def picture(self, path: str, shard: AnyPath) -> Picture:
        """The picture that `shard` names by a path, an address or base64.

        Raises:
            BadImage: see `picture_of` and, where it is fetched, `RemotePicture.read`.
        """
        picture = picture_of(path, shard.parent, self.pictures, HostRule(self.allow_hosts))
        return picture.read() if self.fetch and isinstance(picture, RemotePicture) else picture

    def name(self, shard: AnyPath) -> str:
        """The shard in the ids of its rows."""
        return self.label or writable(shard.name)

    def prefix(self, shard: AnyPath) -> str:
        """What precedes the keys of a tar: its folder below the input, with a slash."""
        folder = self.name(shard).rpartition("/")[0]
        return f"{folder}/" if folder else ""

    def source(self, record: Mapping[str, Any]) -> str | None:
        """The chosen columns of a record as a JSON object; None if no columns are chosen."""
        if not self.columns:
            return None
        chosen = {name: record[name] for name in self.columns if name in record}
        text = json.dumps(chosen, ensure_ascii=False, default=as_text)
        # A lone surrogate is written out as text: as a JSON escape, decoding would restore it.
        return re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):x}", text)


AS_IT_IS = ReadOptions()


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """A text, pictures, or both, with their id; or, where `refused` is set, the reason why the row is refused.

    Args:
        images: the pictures of a row with several; `image` is then None.
        offset: place of the picture for `read_picture`: of its bytes in a tar, the row's number in a table, else -1.
        source: the columns that `ReadOptions.columns` chose, as JSON.
    """

    id: str
    text: str | None = None
    image: Picture | None = None
    instruction: str | None = None
    offset: int = -1
    refused: Rejected | None = None
    source: str | None = None
    images: tuple[Picture, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Of its pictures, as far as they are read."""
        return sum(len(picture) for picture in self.pictures if isinstance(picture, bytes))

    @property
    def is_remote(self) -> bool:
        """Whether any of its pictures is still at a server."""
        return any(isinstance(picture, RemotePicture) for picture in self.pictures)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in their order."""
        return self.images if self.image is None else (self.image,)


def refuse(row_id: str, reason: str, detail: str = "") -> CorpusRow:
    row_id, detail = writable(row_id), " ".join(writable(detail).split())
    if not _REASON.fullmatch(reason):  # a status out of the corpus
        reason, detail = "refused_by_its_status", f"{writable(reason)!r} {detail}"
    if len(detail) > LONGEST_DETAIL:
        detail = f"{detail[:LONGEST_DETAIL]} ..."
    return CorpusRow(row_id, refused=Rejected(row_id, reason, detail))
