"""One row of a corpus as every reader gives it."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    side: str = "both"
    pictures: str | None = None
    label: str = ""

    def picture_path(self, path: str, shard: AnyPath) -> str:
        """Where the picture lies that `shard` names by `path`."""
        if "://" in path:
            return path
        return str((locate(self.pictures) if self.pictures else shard.parent) / path)


AS_IT_IS = ReadOptions()


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """A text, a picture, or both, with its id; or, where `refused` is set, why there is none.

    `offset` is where the picture's bytes start in the shard, for readers that can seek (tars), else -1.
    """

    id: str
    text: str | None = None
    image: bytes | None = None
    instruction: str | None = None
    offset: int = -1
    refused: Rejected | None = None


def refuse(row_id: str, reason: str, detail: str = "") -> CorpusRow:
    row_id, detail = writable(row_id), writable(detail)
    return CorpusRow(row_id, refused=Rejected(row_id, reason, detail))


def writable(text: str) -> str:
    """The text with what UTF-8 cannot hold written out: a name in another encoding, half a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()
