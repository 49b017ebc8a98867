"""In which form a server answers, and its name for the limit of tokens: learnt once, remembered in the work folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from mme5core.durable import write_json

FORM_FILE = "teacher.json"


class KnownForm(NamedTuple):
    """None: not known."""

    form: str | None = None
    limit: str | None = None


def remember_form(work: Path, base_url: str, model: str, form: str, limit: str) -> None:
    write_json(work / FORM_FILE, {"base_url": base_url, "model": model, "mode": form, "limit": limit})


def remembered_form(work: Path, base_url: str, model: str) -> KnownForm:
    """What an earlier run has learnt of this model at this address."""
    try:
        stored = json.loads((work / FORM_FILE).read_text())
    except FileNotFoundError:
        return KnownForm()
    if (stored["base_url"], stored["model"]) != (base_url, model):
        return KnownForm()
    return KnownForm(stored["mode"], stored.get("limit"))
