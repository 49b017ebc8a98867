"""Files of MMEB and XTD-10: one query in each row, with its list of candidates, the positive first."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.readers.corpus_row import CorpusRow, ReadOptions, refuse
from mme5core.readers.parquet_rows import records_of
from mme5core.readers.texts import writable
from mme5core.storage import AnyPath, parquet_file

COLUMNS = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")
PICTURE = "<|image_1|>"
"""Marks a picture in their texts; its path is in a column of its own, or missing in defective rows."""


def is_one(names: list[str]) -> bool:
    return {"qry_text", "tgt_text"} <= set(names)


def read(shard: AnyPath, options: ReadOptions) -> Iterator[CorpusRow]:
    """The queries, the distinct candidates of the file, or both, according to `options.side`."""
    name, seen = dataset_name(shard), set[str]()
    file = parquet_file(shard)
    names = [column for column in dict.fromkeys([*COLUMNS, *options.columns]) if column in file.schema_arrow.names]
    for number, record in enumerate(records_of(file, names)):
        try:
            if options.side != "target":
                yield from _queries(record, name, number, shard, options)
            if options.side != "query":
                for text, path in candidates(record):
                    row_id = target_id(name, text, path)
                    if row_id not in seen:
                        seen.add(row_id)
                        yield _row(row_id, text, path, shard, options)
        except (TypeError, ValueError, AttributeError) as error:  # columns of other types
            yield refuse(query_id(name, number), "unreadable_row", f"{type(error).__name__}: {first_line(error)}")


def candidates(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(text, path of the picture) of each candidate of a row, in order; either may be empty."""
    texts, paths = _listed(record["tgt_text"]), _listed(record.get("tgt_img_path"))
    for place in range(max(len(texts), len(paths))):
        yield (
            (texts[place] if place < len(texts) else "") or "",
            (paths[place] if place < len(paths) else "") or "",
        )


def _listed(entries: Any) -> list[str]:
    """A list of entries; of a text, which is one entry, a list of it."""
    return [entries] if isinstance(entries, str) else list(entries or ())


def query_id(name: str, number: int, place: int = 0) -> str:
    """The id of a row's query; if a row has several query pictures, each of them is a query."""
    return f"{name}/q{number}" + (f".{place}" if place else "")


def target_id(name: str, text: str, path: str) -> str:
    """The id of a candidate, equal for the same text and path in one dataset."""
    content = "\0".join((text, path)).encode("utf-8", "backslashreplace")
    return f"{name}/t{hashlib.sha256(content).hexdigest()[:16]}"


def dataset_name(shard: AnyPath) -> str:
    """The name of a file's dataset: that of its folder if the file is named after a split, else its own (XTD-10).

    >>> dataset_name(PurePosixPath("MMEB-eval/CIRR/test-00000-of-00001.parquet"))
    'CIRR'
    >>> dataset_name(PurePosixPath("XTD-10/it/it.parquet"))
    'it'
    """
    stem = PurePosixPath(shard.name).stem
    return shard.parent.name if stem.split("-")[0] in ("test", "train", "original", "validation") else stem


def _queries(
    record: dict[str, Any], name: str, number: int, shard: AnyPath, options: ReadOptions
) -> Iterator[CorpusRow]:
    paths = record.get("qry_img_path") or ""
    for place, path in enumerate(paths if isinstance(paths, list) else [paths]):
        row = _row(query_id(name, number, place), record["qry_text"] or "", path or "", shard, options)
        yield replace(row, source=options.source(record))


def _row(row_id: str, text: str, path: str, shard: AnyPath, options: ReadOptions) -> CorpusRow:
    row_id = writable(row_id)
    # "<|image_1|>\n" only marks the picture's place, which the prompt style decides.
    text = text.removeprefix(f"{PICTURE}\n").removeprefix(PICTURE)
    image = None
    try:
        if path:
            image = options.picture(path, shard)
    except BadImage as error:
        return refuse(row_id, error.reason, error.detail)
    except ValueError as error:
        return refuse(row_id, "missing_image", first_line(error))
    if image is None and not text:
        return refuse(row_id, "empty_row", "neither text nor picture")
    return CorpusRow(row_id, text or None, image)
