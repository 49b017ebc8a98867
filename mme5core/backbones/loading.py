"""Tokenizer, image processor and configuration of a checkpoint, or one line that says what is missing."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer

from mme5core.errors import first_line
from mme5core.hub import split_hub_id

_ERRORS = (OSError, ValueError, TypeError, AttributeError, ImportError)


def load_config(base: str, *, remote_code: bool = False) -> Any:
    """The checkpoint's configuration.

    Raises:
        ValueError: there is none, or it needs remote code that the user has not allowed.
    """
    name, revision = split_hub_id(base)
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=remote_code)
    except _ERRORS as error:
        if "trust_remote_code" in str(error):
            raise ValueError(f"{base!r} needs code that comes with it: allow it with remote_code=true") from None
        raise ValueError(f"no configuration in {base!r} ({first_line(error)})") from None


def load_tokenizer(base: str, *, remote_code: bool = False) -> Any:
    name, revision = split_hub_id(base)
    try:
        # Truncate on the right whatever the checkpoint says: on the left, pictures and instruction would be lost.
        return AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=remote_code, truncation_side="right"
        )
    except _ERRORS as error:
        raise ValueError(f"no tokenizer in {base!r} ({first_line(error)})") from None


def load_image_processor(base: str, *, remote_code: bool = False) -> Any:
    name, revision = split_hub_id(base)
    try:
        # Always the PIL backend: torchvision rounds differently, and is not always installed.
        return AutoImageProcessor.from_pretrained(name, revision=revision, backend="pil", trust_remote_code=remote_code)
    except _ERRORS as error:
        raise ValueError(f"no image processor in {base!r} ({first_line(error)})") from None


def load_processor(base: str, *, remote_code: bool = False) -> Any:
    name, revision = split_hub_id(base)
    try:
        return AutoProcessor.from_pretrained(name, revision=revision, backend="pil", trust_remote_code=remote_code)
    except _ERRORS as error:
        raise ValueError(f"no processor in {base!r} ({first_line(error)})") from None
