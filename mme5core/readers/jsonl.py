"""JSON lines of texts and pictures, one object for each row."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from mme5core.errors import first_line
from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse
from mme5core.readers.table import Columns, choose_columns, row_of
from mme5core.storage import AnyPath

MAX_LINE_BYTES = 1 << 28


class KeyTwice(dict[str, Any]):
    """An object that names a key twice."""


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """Rows of one file in UTF-8, with the same column names as Parquet files; pictures are given by paths."""
    with shard.open("rb") as stream:
        position = 0
        while line := stream.readline(MAX_LINE_BYTES):
            name = f"{options.name(shard)}:{position}"
            if position == 0:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in line[:4]:
                    yield refuse(options.name(shard), "broken_shard", "not UTF-8: it looks like UTF-16 or UTF-32")
                    return
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                yield refuse(name, "not_json", f"a line of more than {MAX_LINE_BYTES:,} bytes")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE_BYTES)
            elif line.strip():
                yield _row(line, name, shard, position, options)
            position += 1


def _row(line: bytes, name: str, shard: AnyPath, position: int, options: ReadOptions) -> CorpusRow:
    try:
        record = json.loads(line.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return refuse(name, "not_json", f"not UTF-8: {first_line(error)}")
    except (ValueError, RecursionError) as error:
        return refuse(name, "not_json", first_line(error))
    if not isinstance(record, dict):
        return refuse(name, "not_an_object", type(record).__name__)
    if isinstance(record, KeyTwice):
        return refuse(name, "not_json", "an object that names a key twice")
    return row_of(record, _columns_of(tuple(record)), shard, position, options)


@lru_cache(maxsize=256)
def _columns_of(names: tuple[str, ...]) -> Columns:
    return choose_columns(list(names))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    return record if len(record) == len(pairs) else KeyTwice(record)
