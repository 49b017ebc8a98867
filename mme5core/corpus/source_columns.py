"""Columns of the input that go through to the output, with the types that fit all of their values."""

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
    """For each column the name of its type in TYPES; "json": the values are written as JSON text."""

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
            found: set[str] = set()
            for _, table in index.tables(["source"], usable=True):
                for text in table["source"].to_pylist():
                    record = json.loads(text or "{}")
                    found |= record.keys()
                    for name, value in record.items():
                        kinds[name] |= _kind(value)
            for name in columns:
                if name not in found:
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


def _kind(value: Any) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return {"json"}
    return {type(value).__name__ if type(value).__name__ in TYPES else "json"}


def _one_of(kinds: set[str]) -> str:
    """
    >>> _one_of({"int", "float"}), _one_of({"int", "str"}), _one_of(set())
    ('float', 'json', 'str')
    """
    if kinds == {"int", "float"}:
        return "float"
    return next(iter(kinds or {"str"})) if len(kinds) < 2 else "json"


def _as(kind: str, value: Any) -> Any:
    if kind == "float" and value is not None:
        return float(value)  # an integer too large for it would be refused
    return json.dumps(value, ensure_ascii=False) if kind == "json" and value is not None else value
