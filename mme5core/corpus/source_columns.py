"""Columns of the input that are copied to the output, each with a type that fits all of its entries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mme5core.corpus.index import Index
from mme5core.durable import write_json
from mme5core.errors import InputError

TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string(), "json": pa.string()}


@dataclass(frozen=True, slots=True)
class SourceColumns:
    """The type of each column, a name in TYPES; "json": entries are written as JSON text."""

    types: dict[str, str]

    @classmethod
    def of(cls, index: Index, columns: Sequence[str], cache: Path) -> SourceColumns:
        """What the usable rows of a corpus hold in `columns`.

        Raises:
            InputError: no row has one of them.
        """
        if not columns:
            return cls({})
        if not cache.is_file():
            kinds: dict[str, set[str]] = {name: set() for name in columns}
            present: set[str] = set()
            for _, table in index.tables(["source"], usable=True):
                for text in table["source"].to_pylist():
                    record = json.loads(text or "{}")
                    present |= record.keys()
                    for name, entry in record.items():
                        kinds[name] |= _kind(entry)
            for name in columns:
                if name not in present:
                    raise InputError(f"'columns' names {name!r}, which no row of the input has")
            write_json(cache, {name: _one_of(kinds[name]) for name in columns})
        return cls(json.loads(cache.read_text()))

    def fields(self) -> list[pa.Field]:
        return [pa.field(name, TYPES[kind]) for name, kind in self.types.items()]

    def arrays(self, source: pa.ChunkedArray) -> dict[str, pa.Array]:
        """The columns of rows whose `source` is JSON; null where a row has none."""
        if not self.types:
            return {}
        records = [json.loads(text or "{}") for text in source.to_pylist()]
        return {
            name: pa.array([_as(kind, record.get(name)) for record in records], TYPES[kind])
            for name, kind in self.types.items()
        }


def _kind(entry: Any) -> set[str]:
    if entry is None:
        return set()
    if isinstance(entry, int) and not isinstance(entry, bool) and not -(2**63) <= entry < 2**63:
        return {"json"}
    return {type(entry).__name__ if type(entry).__name__ in TYPES else "json"}


def _one_of(kinds: set[str]) -> str:
    """
    >>> _one_of({"int", "float"}), _one_of({"int", "str"}), _one_of(set())
    ('float', 'json', 'str')
    """
    if kinds == {"int", "float"}:
        return "float"
    return next(iter(kinds or {"str"})) if len(kinds) < 2 else "json"


def _as(kind: str, entry: Any) -> Any:
    if kind == "float" and entry is not None:
        return float(entry)  # an integer too large for it would be refused
    return json.dumps(_finite(entry), ensure_ascii=False) if kind == "json" and entry is not None else entry


def _finite(entry: Any) -> Any:
    """The entry with null for NaN and infinity, which JSON does not have."""
    return json.loads(json.dumps(entry), parse_constant=lambda _: None)
