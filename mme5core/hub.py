"""Models of the Hugging Face hub by name and commit: owner/name, or owner/name@COMMIT, whose files never change."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

ASK_AGAIN_S = 60.0
"""A hub that cannot be reached costs its client half a minute of retries: it is not asked again sooner than this."""
_away_since = -ASK_AGAIN_S

_COMMIT = re.compile(r"[0-9a-f]{40}")

Path_ = str | os.PathLike[str]


def is_hub_id(path: Path_) -> bool:
    """Whether a path can only be a model of the hub: it is no folder, and has the form owner/name.

    >>> is_hub_id("owner/name"), is_hub_id("owner/name@v1"), is_hub_id("./name"), is_hub_id("name")
    (True, True, False, False)
    """
    text = str(path)
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def split_hub_id(path: Path_) -> tuple[str, str | None]:
    """Name and revision of a hub id; a folder has no revision.

    >>> split_hub_id("owner/name@v1"), split_hub_id("owner/name")
    (('owner/name', 'v1'), ('owner/name', None))
    """
    if not is_hub_id(path):
        return str(path), None
    name, _, revision = str(path).partition("@")
    return name, revision or None


def at_commit(path: Path_, commit: str | None) -> str:
    """A hub id at a commit; a folder, or an unknown commit, as it is.

    >>> at_commit("owner/name", "f" * 40)[:16]
    'owner/name@fffff'
    """
    if commit is None or not _COMMIT.fullmatch(commit) or not is_hub_id(path):
        return str(path)
    return f"{split_hub_id(path)[0]}@{commit}"


def pinned(path: Path_) -> str:
    """A hub id at the commit that its name stands for now; unchanged if the hub cannot be asked, or for a folder."""
    file = hub_config(path) if is_hub_id(path) else None
    return at_commit(path, file.parent.name if file else None)


def hub_config(path: Path_) -> Path | None:
    """The configuration file of a hub id, downloaded; None if there is none or the hub cannot be reached.

    Its folder bears the commit as its name.
    """
    global _away_since
    from huggingface_hub import hf_hub_download

    name, revision = split_hub_id(path)
    is_away = time.monotonic() - _away_since < ASK_AGAIN_S
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=is_away))
    except (OSError, ValueError, RuntimeError):
        if not is_away:
            _away_since = time.monotonic()
        return None
