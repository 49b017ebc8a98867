"""The keys that every job has, and what follows from any configuration: absolute paths and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, field_validator

from mme5core.errors import InputError
from mme5core.settings import PathKind, Section, key, required, traits, walk

Config = TypeVar("Config", bound=BaseModel)


class JobConfig(Section):
    output: str = key("", "folder that the job writes", rows=False, path="local")
    seed: int = key(0, "every random choice follows from it")
    limit: int | None = key(None, "take only the first N rows of the input", ge=1)
    num_workers: int = key(1, "actors or training processes", rows=False, ge=1)


class InputJobConfig(JobConfig):
    input: list[str] = required("file, folder, glob, or a list of these", names_input=True)

    @field_validator("input", mode="before")
    @classmethod
    def _one_is_a_list(cls, entries: Any) -> Any:
        return as_list(entries)

    @field_validator("input")
    @classmethod
    def _not_empty(cls, entries: list[str]) -> list[str]:
        if not entries or not all(entries):
            raise ValueError("no input given")
        return entries


def as_list(entries: Any) -> Any:
    """One entry as a list of one; None and lists as they are."""
    return entries if entries is None or isinstance(entries, list) else [entries]


def resolve_paths(config: Config) -> Config:
    """The configuration with absolute paths, sections opened: workers run in other folders.

    Raises:
        InputError: an address where a job can only write to a folder.
    """
    update: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        setting = getattr(config, name)
        if isinstance(setting, BaseModel):
            update[name] = resolve_paths(setting)
        elif setting and (kind := traits(field).path):
            update[name] = _absolute(name, setting, kind)
    return config.model_copy(update=update)


def _absolute(name: str, setting: str, kind: PathKind) -> str:
    is_address = "://" in setting
    if kind == "local" and is_address:
        raise InputError(f"{name}={setting!r}: must be a folder that every node sees, not an address")
    path = Path(setting).expanduser()
    if is_address or (kind == "existing" and not path.is_dir()):
        return setting
    return str(path.resolve())


def fingerprint(config: BaseModel, **identities: str) -> str:
    """16 hex digits over every key that changes rows, and over what was read (input, model, ...)."""
    kept = {"/".join(path): setting for path, setting, own in walk(config) if own.rows and not own.names_input}
    if "also" in kept:
        kept["also"] = sorted(kept["also"])  # its entries name what they read; `identities` has that
    text = json.dumps([kept, identities], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def row_keys(config: BaseModel) -> dict[str, Any]:
    """The keys that change rows, as stored beside the fingerprint to say what differs."""
    return {".".join(path): setting for path, setting, own in walk(config) if own.rows}
