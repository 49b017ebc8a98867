"""One row of a corpus as every reader gives it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mme5core.storage import AnyPath, locate
from mme5core.types import Rejected

SIDES = ("both", "query", "target")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a user may say of a corpus.

    Args:
        side: of files that hold queries and candidates: "query", "target" or "both".
        pictures: the folder or address that paths of pictures start from; None: the file's own folder.
        label: names the shard among all of the input in the ids of rows that have none; empty: its file name.
        columns: of the source, to be kept beside each row.
    """

    side: str = "both"
    pictures: str | None = None
    label: str = ""
    columns: tuple[str, ...] = ()

    def picture_path(self, path: str, shard: AnyPath) -> str:
        """Where the picture lies that `shard` names by `path`."""
        if "://" in path:
            return path
        return str((locate(self.pictures) if self.pictures else shard.parent) / path)

    def source(self, record: Mapping[str, Any]) -> str | None:
        """The chosen columns of a record as a JSON object; None where none are chosen."""
        if not self.columns:
            return None
        chosen = {name: record[name] for name in self.columns if name in record}
        text = json.dumps(chosen, ensure_ascii=False, default=str)
        # Half a surrogate pair, written out; as an escape of JSON it would come back.
        return re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):x}", text)


AS_IT_IS = ReadOptions()


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """A text, a picture or several, or text and pictures, with its id; or, where `refused` is set, why there is none.

    Args:
        images: of a row with several pictures, which has no `image`.
        offset: where to find the picture again: the place of its bytes in a tar, the row's number in a table, else -1.
        source: the columns that `ReadOptions.columns` chose, as JSON.
    """

    id: str
    text: str | None = None
    image: bytes | None = None
    instruction: str | None = None
    offset: int = -1
    refused: Rejected | None = None
    source: str | None = None
    images: tuple[bytes, ...] = ()

    @property
    def pictures(self) -> tuple[bytes, ...]:
        """All pictures, in their order."""
        return self.images if self.image is None else (self.image,)


def refuse(row_id: str, reason: str, detail: str = "") -> CorpusRow:
    row_id, detail = writable(row_id), writable(detail)
    return CorpusRow(row_id, refused=Rejected(row_id, reason, detail))


def writable(text: str) -> str:
    """The text with what UTF-8 cannot hold written out: a name in another encoding, half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()
