"""A model folder's settings, base, files, width and identity, read without loading the model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mme5core.hub import at_commit, hub_config, is_hub_id, pinned, split_hub_id

ENCODER_FILE = "encoder.json"
ADAPTER_FILE = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
WEIGHT_PATTERNS = ("*.safetensors", "*.bin")

SAMPLE_BYTES = 4_000_000

DUAL_ENCODERS = ("clip", "siglip", "siglip2", "vision-text-dual-encoder", "jina_clip")
"""`model_type` of the families with one tower for texts and one for pictures."""

# Paths are no part of a model's identity: its folder and its base may move.
_HOLDS_A_PATH = {ENCODER_FILE: ("base", "base_relative"), ADAPTER_FILE: ("base_model_name_or_path",)}
_DECIDES = frozenset((".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"))

Path_ = str | os.PathLike[str]


def read_settings(path: Path_) -> dict[str, Any]:
    """The settings that `Encoder.save` stored beside a model; empty for other folders.

    Raises:
        ValueError: the file is not JSON.
    """
    file = Path(path) / ENCODER_FILE
    return _read_json(file) if file.is_file() else {}


def encoder_settings(path: Path_, adapter: Path_ | None = None) -> dict[str, Any]:
    """The settings stored with an adapter, else with the model, over the default prompt style and pooling."""
    file = _config_file(find_base(path))
    is_dual = file is not None and _read_json(file).get("model_type") in DUAL_ENCODERS
    style, pooling = ("plain", "projection") if is_dual else ("mme5", "last")
    return {"prompt_style": style, "pooling": pooling} | stored_settings(path, adapter)


def stored_settings(path: Path_, adapter: Path_ | None = None) -> dict[str, Any]:
    """`read_settings` of an adapter, which may have none of its own, else of the model beneath it."""
    return (read_settings(adapter) if adapter is not None else {}) or read_settings(path)


def check_embeds(path: Path_, adapter: Path_ | None = None) -> None:
    """
    Raises:
        ValueError: the model is a reranker.
    """
    if stored_settings(path, adapter).get("kind") == "reranker":
        raise ValueError(f"the model at {str(adapter or path)!r} is a reranker, which embeds nothing: see rerank")


def has_adapter(path: Path_) -> bool:
    return (Path(path) / ADAPTER_FILE).is_file()


def find_base(path: Path_) -> str:
    """The checkpoint folder or hub id whose weights a model at `path` starts from; often `path` itself.

    Raises:
        ValueError: a base is missing, or is not the one that an adapter was trained on.
    """
    base = str(path)
    while (beneath := beneath_of(base)) is not None:
        base = beneath
    return base


def adapters_of(path: Path_) -> list[Path]:
    """The adapters of a model at `path`, in the order in which they were trained, each on those before it.

    Raises:
        ValueError: as `find_base`.
    """
    folders = []
    stage: str | None = str(path)
    while stage is not None:
        if has_adapter(stage):
            folders.append(Path(stage))
        stage = beneath_of(stage)
    return folders[::-1]


def beneath_of(path: Path_) -> str | None:
    """The model that the one at `path` was trained on and refers to; None for a checkpoint of its own.

    Raises:
        ValueError: as `find_base`.
    """
    folder = Path(path)
    settings = read_settings(folder)
    if "base" not in settings:
        if not has_adapter(folder):
            return None
        adapter = _read_json(folder / ADAPTER_FILE)
        if not adapter.get("base_model_name_or_path"):
            raise ValueError(f"{folder / ADAPTER_FILE} names no base model")
        revision = adapter.get("revision")
        base = str(adapter["base_model_name_or_path"])
        return f"{base}@{revision}" if revision and is_hub_id(base) else base
    relative = settings.get("base_relative")
    if not relative:
        return at_commit(settings["base"], settings.get("base_commit"))
    others = []
    for candidate in (folder / relative, Path(settings["base"])):
        if candidate.is_dir():
            if settings.get("base_identity") in (None, model_identity(candidate)):
                return str(candidate)
            others.append(candidate)
    if others:
        raise ValueError(f"the base at {others[0]} is not the one that {folder} was trained on")
    raise ValueError(f"{folder} was trained on the base {settings['base']}, which is no longer there")


def base_reference(base: str, folder: Path) -> dict[str, Any]:
    """The base by hub id and commit, or by its identity with an absolute and a relative path: both folders can move."""
    if not Path(base).is_dir():
        name, revision = split_hub_id(base)
        return {"base": name} | ({"base_commit": revision} if revision else {})
    return {
        "base": str(Path(base).resolve()),
        "base_relative": os.path.relpath(Path(base).resolve(), folder.resolve()),
        "base_identity": model_identity(base),
    }


def check_model_files(path: Path_) -> None:
    """Refuse a path that cannot be a model, before a job starts anything for it.

    Raises:
        ValueError: it is neither a folder nor a hub id, or lacks configuration, weights, tokenizer or processor.
    """
    for stage in adapters_of(path):
        if not any(stage.glob("adapter_model.*")):
            raise ValueError(f"no model at {str(stage)!r}: the adapter has no weights")
    base = find_base(path)
    folder = Path(base)
    if not folder.is_dir():
        if not is_hub_id(base):
            raise ValueError(f"no model at {base!r}: not a folder, and not a hub id (owner/name)")
        return
    if not (folder / "config.json").is_file():
        hint = f"; there is one at {str(folder / 'model')!r}" if (folder / "model").is_dir() else ""
        raise ValueError(f"no model at {base!r}: the folder has no config.json{hint}")
    for what, names in (("tokenizer", TOKENIZER_FILES), ("image processor", PROCESSOR_FILES)):
        if not any((folder / name).is_file() for name in names):
            raise ValueError(
                f"model folder {base!r} has no {what} ({' or '.join(names[:2])}): save it beside the weights"
            )
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise ValueError(f"model folder {base!r} has no weights (*.safetensors)")


def check_adapter(path: Path_) -> None:
    """Refuse a folder that holds no adapter.

    Raises:
        ValueError: the configuration or the weights are missing.
    """
    if not has_adapter(path):
        raise ValueError(f"no adapter in {str(path)!r}: it has no {ADAPTER_FILE}")
    if not any(Path(path).glob("adapter_model.*")):
        raise ValueError(f"no adapter in {str(path)!r}: it has no weights")


def model_width(path: Path_) -> int | None:
    """Width of a model's vectors: as stored by `save`, else from the base's configuration; None if there is neither."""
    stored = read_settings(path).get("dimension")
    if stored:
        return int(stored)
    file = _config_file(find_base(path))
    if file is None:
        return None
    width = config_width(_read_json(file))
    if width is None:
        # A width that equals its family's default is often not stored.
        from transformers import AutoConfig

        try:
            width = config_width(AutoConfig.from_pretrained(file.parent).to_dict())
        except (OSError, ValueError):
            return None
    return width


def _config_file(base: str) -> Path | None:
    """The configuration file of a checkpoint folder or hub id; None if it is missing or cannot be downloaded."""
    file = Path(base) / "config.json"
    if file.is_file():
        return file
    return hub_config(base) if is_hub_id(base) else None


def config_width(config: Mapping[str, Any]) -> int | None:
    """Width of the vectors of a model with this configuration: the language model's, or a dual encoder's projection.

    None if the configuration does not state it.
    """
    text = config.get("text_config") or config
    if config.get("model_type") in DUAL_ENCODERS:
        width = config.get("projection_dim") or text.get("projection_size") or text.get("hidden_size")
    else:
        width = text.get("hidden_size")
    return int(width) if width else None


def model_identity(path: Path_) -> str:
    """16 hex digits, hashed from names, sizes and content of a folder's files; of a hub id, the id and its commit.

    An adapter that names its base by hub id alone has the base's commit as part of its identity. Of a file above 8 MB
    only both ends are hashed, to avoid reading many gigabytes of weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        return pinned(path)
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in _DECIDES and file.is_file():
            content = _without_paths(file) if file.name in _HOLDS_A_PATH else file_ends(file, SAMPLE_BYTES)
            digest.update(f"{file.relative_to(folder)}:{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()[:16] + _commit_of_base(folder)


def _commit_of_base(folder: Path) -> str:
    settings = read_settings(folder)
    if "base_identity" in settings or "base_commit" in settings:
        return ""
    base = settings.get("base") or (_read_json(folder / ADAPTER_FILE) if has_adapter(folder) else {}).get(
        "base_model_name_or_path"
    )
    commit = split_hub_id(pinned(base))[1] if base and is_hub_id(base) else None
    return f"@{commit}" if commit else ""


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from None
    return content


def _without_paths(file: Path) -> bytes:
    try:
        settings = json.loads(file.read_text())
    except ValueError:
        return file.read_bytes()
    kept = {key: setting for key, setting in settings.items() if key not in _HOLDS_A_PATH[file.name]}
    return json.dumps(kept, sort_keys=True).encode()


def file_ends(file: Path, num_bytes: int) -> bytes:
    """The content of a file; of one above 2 x `num_bytes`, its size and that many bytes of each end."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= 2 * num_bytes:
            return stream.read()
        head = stream.read(num_bytes)
        stream.seek(-num_bytes, os.SEEK_END)
        return str(size).encode() + head + stream.read()
