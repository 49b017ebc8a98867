"""Settings as typed attributes: what a recipe may hold, with description, unit, default and limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

PathKind = Literal["local", "existing", "any"]


class Section(BaseModel):
    """A group of settings. A key that it does not have is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the command line must know of a key beside its type.

    Args:
        rows: it changes the rows of the output, so that two runs of one folder must agree on it.
        names_input: it names files to read. They may move: their content counts, not their path.
        path: it names a place, which workers must get as an absolute path: "local" for a path of this machine,
            "existing" for a folder of this machine where there is one of that name, else a hub id or the like, "any"
            for a path or an address (s3://...).
        formerly: an earlier name, which still works, and which the fingerprints of earlier runs hold.
        added_later: earlier versions did not have it. At its default it stays out of the fingerprint, so that the
            folders of those versions can be resumed.
    """

    rows: bool = True
    names_input: bool = False
    path: PathKind | None = None
    formerly: str | None = None
    added_later: bool = False


def key(
    default: Any,
    description: str,
    *,
    rows: bool = True,
    names_input: bool = False,
    path: PathKind | None = None,
    formerly: str | None = None,
    added_later: bool = False,
    **rules: Any,
) -> Any:
    """A key with a default; `rules` are pydantic's limits (`ge`, `le`, ...), the others those of `Traits`."""
    extra: dict[str, Any] = {"rows": rows, "names_input": names_input, "path": path}
    extra |= {"formerly": formerly, "added_later": added_later}
    return Field(default, description=description, json_schema_extra=extra, **rules)


def required(description: str, *, names_input: bool = False, path: PathKind | None = None) -> Any:
    """A key without a default."""
    return key(..., description, names_input=names_input, path=path)


def traits(field: FieldInfo) -> Traits:
    extra = field.json_schema_extra
    return Traits(**extra) if isinstance(extra, dict) else Traits()  # type: ignore[arg-type]


def dict_of(settings: BaseModel) -> dict[str, Any]:
    """The keys of `walk` with dots between the names of nested sections."""
    return {".".join(path): setting for path, setting, _ in walk(settings)}


def walk(settings: BaseModel, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Traits]]:
    """(path, setting, traits) of every key that a fingerprint may cover, sections opened.

    A key that was renamed has its earlier name, and one that was added later is left out at its default.
    """
    for name, field in type(settings).model_fields.items():
        setting, own = getattr(settings, name), traits(field)
        path = (*prefix, own.formerly or name)
        if isinstance(setting, BaseModel):
            yield from walk(setting, path)
            continue
        if own.added_later and setting == field.default:
            continue
        if isinstance(setting, dict):
            setting = {k: dict_of(v) if isinstance(v, BaseModel) else v for k, v in setting.items()}
        yield path, setting, own
