"""Models of sentence-transformers behind the interface of `Encoder`, so that baselines run through the same job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mme5core.errors import first_line
from mme5core.hub import split_hub_id
from mme5core.images import BadImage, load_rgb
from mme5core.model_folder import ENCODER_FILE
from mme5core.types import Content, Modality

if TYPE_CHECKING:
    from mme5core.encoder.prepare import OnBad

BATCHES_DECODED_TOGETHER = 4
"""Number of batches whose pictures are decoded together."""

_NAMES: dict[str, Any] = {"T": "text", "I": "image", "IT": ("image", "text")}
_SHOWN = {"T": "texts", "I": "pictures", "IT": "pictures with texts"}


class SentenceTransformerEncoder:
    """A sentence-transformers model, with the pooling, token limit and batch order of that library.

    An instruction is passed as its `prompt` argument, which puts it before the text. Vectors have unit length.

    Raises:
        ValueError: the package is missing, or it cannot load the model.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_tokens: int | None = None,
        remote_code: bool = False,
    ) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ValueError(
                "library=sentence-transformers needs that package: pip install sentence-transformers"
            ) from None
        _check_not_ours(path)
        name, revision = split_hub_id(path)
        try:
            self._model = SentenceTransformer(
                name,
                revision=revision,
                device=None if device == "auto" else device,
                trust_remote_code=remote_code,
                model_kwargs={} if dtype == "auto" else {"dtype": dtype},
            )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ValueError(f"cannot load the model at {path!r}: {first_line(error)}") from None
        if max_tokens is not None:
            self._model.max_seq_length = max_tokens
        self.dimension = int(self._model.get_embedding_dimension() or len(self._model.encode("width")))

    def stream(
        self,
        contents: Sequence[Content],
        instructions: Sequence[str | None],
        *,
        max_batch_rows: int = 32,
        on_bad: OnBad | None = None,
        **options: Any,
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(places in `contents`, their vectors [B, D]), as `Encoder.stream`.

        Args:
            max_batch_rows: most rows in one forward pass.
            on_bad: called for each content that cannot be embedded; None: it raises.
            options: other options of `Encoder.stream`; ignored, because this library decides them itself.

        Raises:
            ValueError: a content that cannot be embedded, without `on_bad`.
        """
        groups: dict[tuple[str, str | None], list[int]] = {}
        for place, (content, instruction) in enumerate(zip(contents, instructions, strict=True)):
            refusal = self._refusal(content)
            if refusal is not None:
                if on_bad is None:
                    raise ValueError(f"content {place}: {refusal}")
                on_bad(place, refusal)
                continue
            groups.setdefault((content.modality, instruction), []).append(place)
        for (modality, instruction), places in groups.items():
            # The library sorts texts by length, best all at once. Pictures are decoded in parts: they are large.
            step = len(places) if modality == "T" else BATCHES_DECODED_TOGETHER * max_batch_rows
            for start in range(0, len(places), step):
                inputs = self._inputs(contents, places[start : start + step], on_bad)
                if inputs:
                    vectors = self._model.encode(
                        list(inputs.values()),
                        prompt=instruction,
                        batch_size=max_batch_rows,
                        normalize_embeddings=True,
                        show_progress_bar=False,
                    )
                    yield list(inputs), np.asarray(vectors, dtype=np.float32)

    def _refusal(self, content: Content) -> BadImage | None:
        """Why the model cannot take a content; None if it can."""
        if len(content.images) > 1:
            count = len(content.images)
            return BadImage("too_many_pictures", f"{count} pictures in one content; sentence-transformers takes 1")
        if not self._takes(content.modality):
            return BadImage("unsupported_modality", f"the model takes no {_SHOWN[content.modality]}")
        return None

    def _takes(self, modality: Modality) -> bool:
        return not hasattr(self._model, "supports") or bool(self._model.supports(_NAMES[modality]))

    def _inputs(self, contents: Sequence[Content], places: Sequence[int], on_bad: OnBad | None) -> dict[int, Any]:
        """The library's form of each content, by place; contents whose picture cannot be read are left out."""
        inputs: dict[int, Any] = {}
        for place in places:
            content = contents[place]
            if content.image is None:
                inputs[place] = content.text
                continue
            try:
                picture = load_rgb(content.image)
            except BadImage as error:
                if on_bad is None:
                    raise ValueError(f"content {place}: {error}") from None
                on_bad(place, error)
                continue
            inputs[place] = {"image": picture, "text": content.text} if content.text else picture
        return inputs


def sentence_transformer_width(path: str, *, remote_code: bool = False) -> int:
    """Width of a model's vectors, from its configuration files where they state it, else by loading the model.

    Raises:
        ValueError: no such model, or it cannot be loaded.
    """
    _check_not_ours(path)
    folder = Path(path)
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:
            raise ValueError(f"no model at {path!r}: not a folder, and not a hub id (owner/name)")
    elif _settings(folder / "config_sentence_transformers.json").get("truncate_dim"):
        return int(_settings(folder / "config_sentence_transformers.json")["truncate_dim"])
    elif (folder / "modules.json").is_file():
        for module in reversed(json.loads((folder / "modules.json").read_text())):
            settings = _settings(folder / module["path"] / "config.json") if module["path"] else {}
            width = settings.get("out_features") or _pooled_width(settings)
            if width:
                return int(width)
    elif not (folder / "config.json").is_file():
        raise ValueError(f"no model at {path!r}: the folder has neither modules.json nor config.json")
    return SentenceTransformerEncoder(path, device="cpu", remote_code=remote_code).dimension


def _check_not_ours(path: str) -> None:
    """
    Raises:
        ValueError: the folder is one of `train`, of which that library would say that it has no tokenizer.
    """
    if (Path(path) / ENCODER_FILE).is_file() and not (Path(path) / "modules.json").is_file():
        raise ValueError(
            f"{path!r} is a model folder of `train`: leave out library=sentence-transformers, or make a folder for "
            "that library with `train export layout=sentence-transformers`"
        )


def _settings(file: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return settings


def _pooled_width(settings: dict[str, Any]) -> int | None:
    """Width of a pooling layer of a single mode; None otherwise, since several modes are concatenated."""
    kinds = [name for name, is_on in settings.items() if name.startswith("pooling_mode") and is_on]
    if len(kinds) != 1 or not isinstance(settings[kinds[0]], str | bool):
        return None
    return settings.get("embedding_dimension") or settings.get("word_embedding_dimension")
