"""Reads the contents that have no vector yet: the first row of each, in windows for the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mme5core.ahead import FETCHED_AHEAD, FETCHED_BYTES, FETCHES_AT_ONCE, side_by_side
from mme5core.content_key import content_key
from mme5core.corpus.contents import Contents
from mme5core.corpus.index import rows_of
from mme5core.durable import wait_until_seen
from mme5core.embedding_settings import InstructionSettings
from mme5core.images import BadImage
from mme5core.readers import CorpusRow, ReadOptions, read_rows
from mme5core.readers.corpus_row import refuse
from mme5core.readers.picture_places import Picture, RemotePicture
from mme5core.readers.pictures import read_picture as read_from_folder
from mme5core.readers.rows import READERS
from mme5core.storage import AnyPath, locate
from mme5core.tasks import Item
from mme5core.types import Content

CONTENTS = pa.schema(
    [
        ("content", pa.int64()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("images", pa.list_(pa.binary())),  # of a content with several pictures, which has no `image`
        ("instruction", pa.string()),
        ("reason", pa.string()),  # set where the row cannot be read any more, or is not what it was
        ("detail", pa.string()),
        ("is_pending", pa.bool_()),  # its picture cannot be reached now; a later run may
    ]
)
_GONE = {"missing_image", "outside_corpus", "too_many_bytes"}
"""What may have become of a row's picture since the scan. Other rows that cannot be read are left to a later run."""
BYTES_AT_SERVER = 1 << 17  # taken for the size of a picture that is at a server
WINDOW_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """The content key of a row under the job's instructions; travels to the workers.

    A picture at a server is known by its address, so that it is fetched once, when it is embedded.
    """

    instructions: InstructionSettings

    def __call__(self, row: CorpusRow) -> bytes:
        pictures = [_stands_for(picture) for picture in row.pictures]
        return content_key(row.text, None, self.instruction_of(row), pictures)

    def content_columns(self, row: CorpusRow, key: bytes) -> Item:
        """CONTENT_COLUMNS of a row with this key."""
        pictures = [_stands_for(picture) for picture in row.pictures]
        content = content_key(row.text, None, None, pictures) if self.instruction_of(row) else key
        is_alone = len(pictures) == 1 and not row.text
        picture = content_key(None, None, None, pictures) if len(pictures) == 1 and not is_alone else None
        return {
            "content_key": content,
            "picture_key": content if is_alone else picture,
            "modality": Content(row.text, None, row.pictures).modality,
        }

    def instruction_of(self, row: CorpusRow) -> str | None:
        """The row's own instruction, else the job's for its modality."""
        if row.instruction:
            return row.instruction
        by_modality = {"T": self.instructions.T, "I": self.instructions.I, "IT": self.instructions.IT}
        return by_modality[Content(row.text, None, row.pictures).modality]


@dataclass(frozen=True, slots=True)
class ReadUnembedded:
    """Shards in, windows of their contents out: at most `window_rows` rows and about WINDOW_BYTES each.

    A row that cannot be read a second time is left out, and so has no vector at the end.

    Args:
        index: its folder.
        row_starts: of the index.
        is_done: file of a byte per content: 1 where it had a vector when the run began. It does not change while
            tasks read it: one that is tried again must yield the same windows, or Ray would drop others.
    """

    index: Path
    row_starts: np.ndarray
    contents: Contents
    is_done: Path
    key_of: EmbeddingKey
    window_rows: int
    options: ReadOptions
    refuses_unreachable: bool = False

    def windows(self, items: list[Item]) -> Iterator[pa.Table]:
        """Tables of CONTENTS; rows of several small shards share one.

        Args:
            items: "shard", its "path" and its "label".
        """
        window: list[dict[str, Any]] = []
        num_bytes = 0
        for item in items:
            records = side_by_side(
                self._record,
                self._read(item),
                is_slow=_is_remote,
                at_once=FETCHES_AT_ONCE,
                waiting=FETCHED_AHEAD,
                size_of=_bytes_of,
                most_bytes=FETCHED_BYTES,
            )
            for record in records:
                window.append(record)
                num_bytes += record.pop("num_bytes")
                if len(window) >= self.window_rows or num_bytes >= WINDOW_BYTES:
                    yield pa.Table.from_pylist(window, CONTENTS)
                    window, num_bytes = [], 0
        if window:
            yield pa.Table.from_pylist(window, CONTENTS)

    def _wanted(self, shard: int) -> Iterator[tuple[int, int, bytes, str]]:
        """(position in the shard, content, its key, the row's id) of the rows to read."""
        begun, end = (int(start) for start in self.contents.starts[shard : shard + 2])
        wait_until_seen(self.is_done.is_file, self.is_done.parent)
        is_done = np.fromfile(self.is_done, np.bool_, end - begun, offset=begun)
        first_row = int(self.row_starts[shard])
        newest = begun - 1
        for rows, table in rows_of(self.index, shard, first_row, ["key", "id"]):
            of_rows = self.contents.of(int(rows[0]), len(rows))
            highest = np.maximum.accumulate(np.concatenate([[newest], of_rows]))
            chosen = np.flatnonzero(of_rows > highest[:-1])
            chosen = chosen[~is_done[of_rows[chosen] - begun]]
            newest = int(highest[-1])
            wanted = table.take(pa.array(chosen))
            keys, ids = wanted["key"].to_pylist(), wanted["id"].to_pylist()
            yield from zip((rows[chosen] - first_row).tolist(), of_rows[chosen].tolist(), keys, ids, strict=True)

    def _read(self, item: Item) -> Iterator[_Wanted]:
        shard, options = locate(item["path"]), replace(self.options, label=item["label"], fetch=False)
        if shard.suffix.lower() not in READERS:
            # A folder, by name: a picture that was added to the folder since must not move the others.
            for _, content, key, row_id in self._wanted(item["shard"]):
                yield _Wanted(content, key, _in_folder(shard, row_id, options))
            return
        wanted = self._wanted(item["shard"])
        target = next(wanted, None)
        for position, row in enumerate(read_rows(shard, options)):
            if target is None:
                return
            if position != target[0]:
                continue
            if row.refused is None or row.refused.reason in _GONE:
                yield _Wanted(target[1], target[2], row)
            target = next(wanted, None)

    def _record(self, wanted: _Wanted) -> dict[str, Any]:
        row = wanted.row
        # Of a picture at a server a constant: a task that is tried again must yield the same windows.
        num_bytes = len(row.text or "") + sum(
            BYTES_AT_SERVER if isinstance(picture, RemotePicture) else len(picture) for picture in row.pictures
        )
        record: dict[str, Any] = {"content": wanted.content, "num_bytes": num_bytes, "is_pending": False}
        if row.refused is not None:
            return record | {"reason": row.refused.reason, "detail": row.refused.detail}
        if self.key_of(row) != wanted.key:
            return record | {"reason": "changed_since_scan"}
        try:
            pictures = [picture.read() if isinstance(picture, RemotePicture) else picture for picture in row.pictures]
        except BadImage as error:
            is_pending = error.reason == "unreachable_image" and not self.refuses_unreachable
            return record | {"reason": error.reason, "detail": error.detail, "is_pending": is_pending}
        record |= {"text": row.text, "instruction": self.key_of.instruction_of(row)}
        return record | ({"image": pictures[0]} if len(pictures) == 1 else {"images": pictures})


@dataclass(frozen=True, slots=True)
class _Wanted:
    content: int
    key: bytes
    row: CorpusRow


def _in_folder(folder: AnyPath, row_id: str, options: ReadOptions) -> CorpusRow:
    try:
        return CorpusRow(row_id, image=read_from_folder(folder, row_id, options))
    except BadImage as error:
        return refuse(row_id, error.reason, error.detail)


def _is_remote(wanted: _Wanted) -> bool:
    return wanted.row.is_remote


def _bytes_of(record: dict[str, Any]) -> int:
    return len(record.get("image") or b"") + sum(map(len, record.get("images") or ()))


def _stands_for(picture: Picture) -> bytes:
    """The picture's bytes, or bytes that no picture has, with its address."""
    return picture if isinstance(picture, bytes) else f"\0address\0{picture.place}".encode()
