"""From recipe and overrides to one checked configuration, or one line that quotes what was typed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mme5core.errors import InputError
from mme5core.settings import traits
from rayjobs.command.config import JobConfig
from rayjobs.command.job import Job
from rayjobs.command.nearest import nearest
from rayjobs.command.recipes import parse_yaml, read_section


def load_config(job: Job, verb: str, recipe: str | None, overrides: Sequence[str]) -> JobConfig:
    """The configuration of a verb: its defaults, then the job's section of the recipe, then the overrides.

    A verb with keys of its own takes from the recipe only what the job wrote, as its input.

    Args:
        recipe: a YAML file, or the name of one in `rayjobs/recipes/`.
        overrides: `key.sub=value`, values read as YAML.

    Raises:
        InputError: quoting what was typed, and the nearest thing that exists.
    """
    model = job.verbs[verb].config
    keys = read_section(recipe, job.section(verb)) if recipe else {}
    if job.has_own_keys(verb):
        keys = {"input": keys["output"]} if "output" in keys else {}
    keys = _with_current_names(keys, model)
    for override in overrides:
        _apply(keys, override, model)
    try:
        return model.model_validate(keys)
    except ValidationError as error:
        raise InputError(_explain(error, model, overrides)) from None


def _apply(keys: dict[str, Any], override: str, model: type[BaseModel]) -> None:
    """Set one key to what an override says."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"cannot read {override!r}: overrides are key=value or key.sub=value")
    try:
        setting = parse_yaml(text) if text else ""
    except yaml.YAMLError:
        setting = text
    *parents, last = _current_name(key.split("."), model)
    for depth, parent in enumerate(parents, start=1):
        inner = keys.setdefault(parent, _default_weights(model, parents[:depth]))
        if not isinstance(inner, dict):
            raise InputError(f"cannot set {key!r}: {parent!r} is not a section")
        keys = inner
    keys[last] = setting


def _with_current_names(keys: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Keys of a recipe, those under an earlier name renamed; sections opened."""
    renamed: dict[str, Any] = {}
    for key, setting in keys.items():
        (name,) = _current_name([str(key)], model)
        if name in renamed:
            raise InputError(f"{name!r} is set twice, also under its earlier name")
        section = _section(model, name)
        renamed[name] = _with_current_names(setting, section) if section and isinstance(setting, dict) else setting
    return renamed


def _current_name(path: Sequence[str], model: type[BaseModel]) -> list[str]:
    """The path of a key as it is called today."""
    names: list[str] = []
    section: type[BaseModel] | None = model
    for part in path:
        fields = section.model_fields if section else {}
        name = next((new for new, field in fields.items() if traits(field).formerly == part), part)
        section = _section(section, name) if section else None
        names.append(name)
    return names


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section that a key opens, if it opens one."""
    field = model.model_fields.get(name)
    inner = field.annotation if field else None
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _default_weights(model: type[BaseModel], path: Sequence[str]) -> dict[str, Any]:
    """What a key that holds a mapping has by default, so that `tasks.vqa=0` leaves the other tasks as they are."""
    section: type[BaseModel] | None = model
    for name in path[:-1]:
        section = _section(section, name) if section else None
    field = section.model_fields.get(path[-1]) if section else None
    return dict(field.default) if field is not None and isinstance(field.default, dict) else {}


def _explain(error: ValidationError, model: type[BaseModel], overrides: Sequence[str]) -> str:
    """The first problem, as one line with the key as it was typed; a misspelt key before what it leaves missing."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    known = [".".join(path) for path in _known_keys(model)]
    key = ".".join(str(part) for part in problem["loc"])
    typed = {".".join(_current_name(name.split("."), model)): name for name, *_ in (o.split("=") for o in overrides)}
    if problem["type"] == "extra_forbidden":
        # Below a name that people choose (also.NAME.key) the known keys are those of its section.
        key = next((name for name in typed.values() if name.startswith(f"{key}.")), key)
        return f"unknown key {key!r}{nearest(key, known)}"
    last = problem["loc"][-1]
    if problem["input"] is None and isinstance(last, str) and ":" in last:
        name, _, setting = last.partition(":")
        return f"{key.removesuffix('.' + last)}: {last!r} has no value; YAML wants a space, as in {{{name}: {setting}}}"
    # Pydantic adds the alternatives that it tried behind the key.
    while key and key not in known and "." in key:
        key = key.rpartition(".")[0]
    if problem["type"] == "missing":
        return f"{key!r} is required: {_description(model, key)}"
    message = problem["msg"].removeprefix("Value error, ")
    key = typed.get(key, key)
    return f"{key}={problem['input']!r}: {message[:1].lower()}{message[1:]}{_hint(key, problem, known)}"


def _hint(key: str, problem: Any, known: Sequence[str]) -> str:
    """How to write what was probably meant: values are read as YAML."""
    if problem["type"] == "list_type":
        return f": write {key}=[{problem['input']}]"
    if problem["type"] in ("model_type", "dict_type"):
        below = [name for name in known if name.startswith(f"{key}.")]
        return f"; its keys are {', '.join(below)}" if below else ""
    if problem["type"] == "string_type":
        return f"; values are read as YAML, so quote this one: '{key}=\"...\"'"
    return ""


def _description(model: type[BaseModel], key: str) -> str:
    field = model.model_fields.get(key.split(".")[0])
    return field.description or "" if field else ""


def _known_keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys, those that were renamed under their earlier names too."""
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        if formerly := traits(field).formerly:
            yield (*prefix, formerly)
        if section := _section(model, name):
            yield from _known_keys(section, (*prefix, name))
