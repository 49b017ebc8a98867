"""A model folder that `Encoder.load` takes: adapter, prompt style, pooling, and the base by reference or whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mme5core.model_folder import ENCODER_FILE, base_reference, beneath_of, model_identity

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def save_model(
    folder: Path,
    model: Any,
    backbone: Any,
    *,
    settings: dict[str, Any],
    base: str,
    merged_adapter: Path | None,
    include_base: bool,
) -> None:
    """Write `settings` and the weights that are not in `base`.

    Args:
        settings: of the encoder; the reference to the base is added.
        merged_adapter: the folder of an adapter that was folded into the weights. It is copied; if the model has
            another adapter on top of it, it is what that one refers to.
        include_base: write all weights, with tokenizer and processor, instead of a reference.

    Raises:
        ValueError: `merged_adapter` does not say what it was put on, so that a reference to it would be to another
            model.
    """
    is_adapted = hasattr(model, "peft_config")
    if is_adapted and merged_adapter is not None and not include_base:
        _check_reference(merged_adapter, base)
        base = str(merged_adapter)
    folder.mkdir(parents=True, exist_ok=True)
    if include_base:
        (model.merge_and_unload() if is_adapted else model).save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
        backbone.image_processor.save_pretrained(folder)
        if hasattr(backbone, "processor"):
            backbone.processor.save_pretrained(folder)
    else:
        if is_adapted:
            from mme5core.adapters import magnitudes_as_published  # imports peft, which most models do not need

            with magnitudes_as_published(model):
                model.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)  # peft's model card, an unfilled template
        elif merged_adapter is not None:
            for name in _ADAPTER_FILES:
                shutil.copy(merged_adapter / name, folder / name)
        settings = settings | base_reference(base, folder)
    (folder / ENCODER_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def _check_reference(adapter: Path, base: str) -> None:
    beneath = beneath_of(adapter)
    if beneath is None or model_identity(beneath) != model_identity(base):
        raise ValueError(
            f"{adapter} was put on {base}, but names {beneath} as its base: save with include_base=True, or save the "
            "model with that adapter first and load it from there"
        )
