"""Recipes: YAML files with a section per job, and the YAML that people write on a command line."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mme5core.errors import InputError
from rayjobs.command.nearest import nearest

SECTIONS = ("synth", "train", "embed-corpus", "mine", "judge", "rerank", "rerank train", "evaluate", "demo")
"""The sections that a recipe may have: the jobs, and verbs that have their own."""


class Loader(yaml.SafeLoader):
    """YAML as people mean it here: `no` is Norwegian, 2024-01-31 is a folder, 1e-4 is a number."""


_REPLACED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"}
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """
    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return Loader(text).get_single_data()


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("rayjobs") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_section(recipe: str, job: str) -> dict[str, Any]:
    """A job's keys in a recipe; all of a recipe that has no sections.

    Args:
        recipe: a YAML file, or the name of one that comes with the package.

    Raises:
        InputError: quoting the recipe, and the nearest thing that exists.
    """
    keys = _read(recipe)
    if not any(name in SECTIONS for name in keys):
        return keys
    for name in keys:
        if name not in SECTIONS:
            raise InputError(f"recipe {recipe!r}: unknown section {name!r}{nearest(str(name), SECTIONS)}")
    if job not in keys:
        raise InputError(f"recipe {recipe!r} has no section {job!r}; it has {', '.join(keys)}")
    section = keys[job] or {}
    if not isinstance(section, dict):
        raise InputError(f"recipe {recipe!r}: section {job!r} must hold keys and values")
    return section


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"recipe {recipe!r} cannot be read: {error}") from None
    else:
        named = resources.files("rayjobs") / "recipes" / f"{recipe}.yaml"
        if not named.is_file():
            raise InputError(f"no recipe {recipe!r}: not a file, and not one of {', '.join(recipe_names())}")
        text = named.read_text()
    try:
        keys = parse_yaml(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"recipe {recipe!r}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(keys, dict):
        raise InputError(f"recipe {recipe!r}: expected keys and values, got a {type(keys).__name__}")
    return keys
