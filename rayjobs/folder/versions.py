"""Versions of Python and of the packages that rows depend on."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = (
    "mme5",
    "ray",
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "pyarrow",
    "pillow",
    "openai",
    "numpy",
    "torchvision",
)


def versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
