"""A model folder that `Encoder.load` takes: adapter, prompt style, pooling, and the base by reference or whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mme5core.model_folder import ENCODER_FILE, base_reference

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
        merged_adapter: the folder of an adapter that was folded into the weights; it is copied.
        include_base: write all weights, with tokenizer and processor, instead of a reference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_adapted = hasattr(model, "peft_config")
    if include_base:
        (model.merge_and_unload() if is_adapted else model).save_pretrained(folder)
        backbone.tokenizer.save_pretrained(folder)
        backbone.image_processor.save_pretrained(folder)
        if hasattr(backbone, "processor"):
            backbone.processor.save_pretrained(folder)
    else:
        if is_adapted:
            model.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)  # peft's model card, an unfilled template
        elif merged_adapter is not None:
            for name in _ADAPTER_FILES:
                shutil.copy(merged_adapter / name, folder / name)
        settings = settings | base_reference(base, folder)
    (folder / ENCODER_FILE).write_text(json.dumps(settings, indent=2) + "\n")
