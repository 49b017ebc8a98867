"""What --help prints: usage, and every key with its type, default and meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel

from rayjobs.command.job import Job
from rayjobs.command.recipes import recipe_names


def help_text(job: Job) -> str:
    verbs = [name for name in job.verbs if name]
    lines = [
        f"usage: {job.name} {'[' + '|'.join(verbs) + '] ' if verbs else ''}[--config RECIPE] [key.sub=value ...] "
        "[--dry-run]",
        "",
        f"RECIPE is a YAML file, or one of: {', '.join(recipe_names())}.",
        "--dry-run prints the effective configuration and what would be read, and does nothing.",
        "Exit codes: 0 done, 1 failed, 2 bad configuration or input, 3 stopped and resumable.",
        "",
        "keys:",
        *_key_lines(job, ""),
    ]
    for verb in verbs:
        if job.has_own_keys(verb):
            lines += ["", f"keys of {job.label(verb)}:", *_key_lines(job, verb)]
    return "\n".join(lines)


def _key_lines(job: Job, verb: str) -> Iterator[str]:
    for key, kind, default, description in _keys(job.verbs[verb].config):
        yield f"  {key}  ({kind}; {default})"
        yield f"      {description}"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, description) of every key, sections opened."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _keys(annotation, f"{prefix}{name}.")
            continue
        named = next((a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)), None)
        if named is not None:
            yield prefix + name, "sections by name", "default none", field.description or ""
            yield from _keys(named, f"{prefix}{name}.NAME.")
            continue
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
        default = "required" if field.is_required() else f"default {json.dumps(field.default, default=str)}"
        yield prefix + name, kind, default, field.description or ""
