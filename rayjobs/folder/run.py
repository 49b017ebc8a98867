"""What makes a run the same run: its job, the settings that change rows, and what it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mme5core.storage import without_credentials

MAX_FILES_KEPT = 10_000
NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job.

    Args:
        config: the effective configuration.
        fingerprint: over what changes rows.
        keys: the settings that the fingerprint covers, kept to say what differs.
        identities: of what is read, by the key that names it.
        files: identities of the input's files by name, kept for the same reason.
    """

    job: str
    config: dict[str, Any]
    fingerprint: str
    keys: dict[str, Any]
    identities: dict[str, str]
    files: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As the work folder and the manifest hold it: without secrets."""
        return {
            "job": self.job,
            "fingerprint": self.fingerprint,
            "identities": self.identities,
            "input_files": dict(self.files) if len(self.files) <= MAX_FILES_KEPT else {},
            "keys": json.loads(json.dumps(self.keys, default=str)),
            "config": json.loads(without_credentials(json.dumps(self.config, default=str))),
        }

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """What differs from an earlier run (`as_json`), in words."""
        now = self.as_json()
        lines = [
            f"{key}: {earlier[group].get(key)!r} there, {now[group].get(key)!r} here"
            for group in ("identities", "keys")
            for key in sorted(now[group].keys() | earlier.get(group, {}).keys())
            if earlier.get(group, {}).get(key) != now[group].get(key)
        ]
        return lines + _changed_files(earlier.get("input_files", {}), now["input_files"])


def _changed_files(earlier: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What a person would say of two sets of files, a few of each kind at most."""
    if not earlier or not now or list(earlier.items()) == list(now.items()):
        return []
    kinds = {
        "changed": [name for name in now if name in earlier and now[name] != earlier[name]],
        "new": [name for name in now if name not in earlier],
        "gone": [name for name in earlier if name not in now],
    }
    lines = [
        f"{kind} in the input: {', '.join(names[:NAMES_SHOWN])}"
        + (f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else "")
        for kind, names in kinds.items()
        if names
    ]
    return lines or ["the input's files are in another order"]
