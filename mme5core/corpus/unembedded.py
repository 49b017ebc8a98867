"""Reads the contents that have no vector yet: the first row of each, in windows for the encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mme5core.content_key import content_key
from mme5core.corpus.contents import Contents
from mme5core.corpus.index import rows_of
from mme5core.durable import wait_until_seen
from mme5core.embedding_settings import InstructionSettings
from mme5core.readers import CorpusRow, ReadOptions, read_rows
from mme5core.storage import locate
from mme5core.tasks import Item
from mme5core.types import Content

CONTENTS = pa.schema(
    [
        ("content", pa.int64()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("images", pa.list_(pa.binary())),  # of a content with several pictures, which has no `image`
        ("instruction", pa.string()),
        ("reason", pa.string()),  # set where the row is not what it was when the corpus was scanned
    ]
)
WINDOW_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """The content key of a row under the job's instructions; travels to the workers."""

    instructions: InstructionSettings

    def __call__(self, row: CorpusRow) -> bytes:
        return content_key(row.text, row.image, self.instruction_of(row), row.images)

    def instruction_of(self, row: CorpusRow) -> str | None:
        """The row's own instruction, else the job's for its modality."""
        if row.instruction:
            return row.instruction
        by_modality = {"T": self.instructions.T, "I": self.instructions.I, "IT": self.instructions.IT}
        return by_modality[Content(row.text, row.image, row.images).modality]


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

    def windows(self, items: list[Item]) -> Iterator[pa.Table]:
        """Tables of CONTENTS; rows of several small shards share one.

        Args:
            items: "shard", and its "path".
        """
        window: list[dict[str, Any]] = []
        num_bytes = 0
        for item in items:
            for record in self._read(item):
                window.append(record)
                pictures = (record.get("image") or b"", *record.get("images", ()))
                num_bytes += len(record.get("text") or "") + sum(map(len, pictures))
                if len(window) >= self.window_rows or num_bytes >= WINDOW_BYTES:
                    yield pa.Table.from_pylist(window, CONTENTS)
                    window, num_bytes = [], 0
        if window:
            yield pa.Table.from_pylist(window, CONTENTS)

    def _wanted(self, shard: int) -> Iterator[tuple[int, int, bytes]]:
        """(position in the shard, content, its key) of the rows to read."""
        begun, end = (int(start) for start in self.contents.starts[shard : shard + 2])
        wait_until_seen(self.is_done.is_file, self.is_done.parent)
        is_done = np.fromfile(self.is_done, np.bool_, end - begun, offset=begun)
        first_row = int(self.row_starts[shard])
        newest = begun - 1
        for rows, table in rows_of(self.index, shard, first_row, ["key"]):
            of_rows = self.contents.of(int(rows[0]), len(rows))
            highest = np.maximum.accumulate(np.concatenate([[newest], of_rows]))
            chosen = np.flatnonzero(of_rows > highest[:-1])
            chosen = chosen[~is_done[of_rows[chosen] - begun]]
            newest = int(highest[-1])
            keys = table["key"].take(pa.array(chosen)).to_pylist()
            yield from zip((rows[chosen] - first_row).tolist(), of_rows[chosen].tolist(), keys, strict=True)

    def _read(self, item: Item) -> Iterator[dict[str, Any]]:
        wanted = self._wanted(item["shard"])
        target = next(wanted, None)
        try:
            for position, row in enumerate(read_rows(locate(item["path"]), self.options)):
                if target is None:
                    return
                if position != target[0]:
                    continue
                if row.refused is None:
                    yield self._record(row, target[1], target[2])
                target = next(wanted, None)
        except OSError:
            return

    def _record(self, row: CorpusRow, content: int, key: bytes) -> dict[str, Any]:
        if self.key_of(row) != key:
            return {"content": content, "reason": "changed_since_scan"}
        instruction = self.key_of.instruction_of(row)
        record = {"content": content, "text": row.text, "image": row.image, "instruction": instruction}
        return record | {"images": row.images}
