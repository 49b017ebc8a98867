"""Windows of contents in, vectors into the log: what an embedding worker does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mme5core.corpus.vector_log import append, vector_schema
from mme5core.embedding_settings import EmbeddingSettings
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

        Raises:
            OSError, ValueError, TypeError, LookupError, RuntimeError: it cannot be embedded or written.
        """
        dimension = self._encoder.dimension
        schema = vector_schema(dimension)
        rows = window.filter(pc.is_null(window["reason"])).to_pylist()
        refused = window.filter(pc.is_valid(window["reason"])).select(["content", "reason"]).to_pylist()

        def on_bad(place: int, error: BadImage) -> None:
            refused.append({"content": rows[place]["content"], "reason": error.reason, "detail": error.detail})

        contents, vectors = [], [np.zeros((0, dimension), dtype=np.float32)]
        for places, vector_BD in self._encoder.stream(
            [Content(row["text"], row["image"], row["images"] or ()) for row in rows],
            [row["instruction"] for row in rows],
            max_batch_rows=self._settings.max_batch_rows,
            max_batch_tokens=self._settings.max_batch_tokens,
            max_pictures=self._settings.max_batch_pictures,
            num_threads=self._settings.picture_threads,
            on_bad=on_bad,
        ):
            contents += [rows[place]["content"] for place in places]
            vectors.append(vector_BD)
        embedded = pa.table(
            {
                "content": pa.array(contents, pa.int64()),
                "embedding": pa.FixedSizeListArray.from_arrays(np.concatenate(vectors).ravel(), dimension),
                "reason": pa.nulls(len(contents), pa.string()),
                "detail": pa.nulls(len(contents), pa.string()),
            },
            schema=schema,
        )
        return append(self._log, pa.concat_tables([embedded, pa.Table.from_pylist(refused, schema)]))
