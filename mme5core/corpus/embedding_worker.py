"""Windows of contents in, vectors into the log: what an embedding worker does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.corpus.vector_log import append, vector_schema
from mme5core.embedding_settings import EmbeddingSettings
from mme5core.errors import first_line
from mme5core.images import BadImage
from mme5core.peers import SentenceTransformerEncoder
from mme5core.types import Content

if TYPE_CHECKING:
    from mme5core.encoder import Encoder


def load_encoder(settings: EmbeddingSettings) -> Encoder | SentenceTransformerEncoder:
    """
    Raises:
        ValueError: there is no such model, or it cannot be loaded.
    """
    if settings.library == "sentence-transformers":
        return SentenceTransformerEncoder(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            max_tokens=settings.max_tokens,
            remote_code=settings.remote_code,
        )
    from mme5core.encoder import Encoder

    encoder = Encoder.load(
        settings.model,
        settings.adapter,
        settings.prompt_style,
        settings.device,
        settings.dtype,
        remote_code=settings.remote_code,
    )
    encoder.max_tokens = settings.max_tokens or encoder.max_tokens
    return encoder


class EmbeddingWorker:
    """
    Args:
        log: the folder of the vectors.
    """

    def __init__(self, encoder: Encoder | SentenceTransformerEncoder, settings: EmbeddingSettings, log: Path) -> None:
        self._encoder, self._settings, self._log = encoder, settings, log

    def embed(self, window: pa.Table) -> str:
        """Embed a window of `unembedded.CONTENTS`; returns the name of its file in the log.

        Where a batch fails, it is split until the contents that spoil it are known; these are refused.

        Raises:
            OSError, ValueError, TypeError, LookupError, RuntimeError: nothing can be embedded, or it cannot be written.
        """
        schema = vector_schema(self._encoder.dimension)
        is_readable = pc.and_(pc.is_null(window["reason"]), pc.invert(window["is_pending"]))
        is_refused = pc.and_(pc.is_valid(window["reason"]), pc.invert(window["is_pending"]))
        refused = window.filter(is_refused).select(["content", "reason", "detail"]).to_pylist()
        rows = window.filter(is_readable).to_pylist()
        numbers, vectors = [], [np.zeros((0, self._encoder.dimension), dtype=np.float32)]
        for places, vector_BD in self._embed(rows, refused):
            numbers += [rows[place]["content"] for place in places]
            vectors.append(vector_BD)
        vector_ND = np.concatenate(vectors)
        embedded = pa.table(
            {
                "content": pa.array(numbers, pa.int64()),
                "embedding": pa.FixedSizeListArray.from_arrays(vector_ND.ravel(), vector_ND.shape[1]),
                "reason": pa.nulls(len(numbers), pa.string()),
                "detail": pa.nulls(len(numbers), pa.string()),
            },
            schema=schema,
        )
        return append(self._log, pa.concat_tables([embedded, pa.Table.from_pylist(refused, schema)]))

    def _embed(
        self, rows: Sequence[dict[str, Any]], refused: list[dict[str, Any]]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """(places of rows, their vectors); rows that cannot be embedded are appended to `refused`."""
        waiting = [list(range(len(rows)))]
        while waiting:
            places = waiting.pop()
            left = set(places)
            try:
                for batch, vector_BD in self._stream(rows, places, refused, left):
                    left.difference_update(batch)
                    yield batch, vector_BD
            except OSError:
                raise
            except Exception as error:
                rest = sorted(left)
                if len(rest) > 1:
                    waiting += [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
                elif rest:
                    self._check_encoder(error)
                    detail = f"{type(error).__name__}: {first_line(error)}"
                    refused.append({"content": rows[rest[0]]["content"], "reason": "cannot_embed", "detail": detail})

    def _stream(
        self, rows: Sequence[dict[str, Any]], places: list[int], refused: list[dict[str, Any]], left: set[int]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        chosen = [rows[place] for place in places]

        def on_bad(number: int, error: BadImage) -> None:
            left.discard(places[number])
            refused.append({"content": chosen[number]["content"], "reason": error.reason, "detail": error.detail})

        contents = [Content(row["text"], row["image"], row["images"] or ()) for row in chosen]
        instructions = [row["instruction"] for row in chosen]
        for batch, vector_BD in self._encoder.stream(contents, instructions, on_bad=on_bad, **self._limits()):
            yield [places[number] for number in batch], vector_BD

    def _check_encoder(self, error: Exception) -> None:
        """Raise the error of a content, unless the encoder still embeds another one: then it is the content's fault."""
        try:
            ((_, vector_BD),) = self._encoder.stream([Content(text="a")], [None], **self._limits())
        except Exception:
            raise error from None
        if not np.isfinite(vector_BD).all():
            raise error

    def _limits(self) -> dict[str, Any]:
        return {
            "max_batch_rows": self._settings.max_batch_rows,
            "max_batch_tokens": self._settings.max_batch_tokens,
            "max_pictures": self._settings.max_batch_pictures,
            "num_threads": self._settings.picture_threads,
        }
