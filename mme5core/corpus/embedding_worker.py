"""Windows of contents in, vectors into the log: what an embedding worker does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        picture_side=settings.picture_side,
        positions=settings.positions,
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
        results = _Results.of(window)
        numbers: list[int] = []
        vectors = [np.zeros((0, self._encoder.dimension), dtype=np.float32)]
        for places, vector_BD in self._embed(results):
            numbers += [results.rows[place]["content"] for place in places]
            vectors.append(vector_BD)
        return append(self._log, results.table(numbers, np.concatenate(vectors)))

    def _embed(self, results: _Results) -> Iterator[tuple[list[int], np.ndarray]]:
        """(places of rows, their vectors) of all rows that can be embedded."""
        waiting = [list(range(len(results.rows)))]
        while waiting:
            left = dict.fromkeys(waiting.pop())
            try:
                for places, vector_BD in self._stream(results, left):
                    for place in places:
                        del left[place]
                    yield places, vector_BD
            except OSError:
                raise
            except Exception as error:
                rest = list(left)
                if len(rest) > 1:
                    waiting += [rest[: len(rest) // 2], rest[len(rest) // 2 :]]
                elif rest:
                    self._check_encoder(error)
                    results.refuse(rest[0], "cannot_embed", f"{type(error).__name__}: {first_line(error)}")

    def _stream(self, results: _Results, left: dict[int, None]) -> Iterator[tuple[list[int], np.ndarray]]:
        """The vectors of the places that are left; those whose content is bad are taken from them."""
        places = list(left)
        chosen = [results.rows[place] for place in places]

        def on_bad(number: int, error: BadImage) -> None:
            del left[places[number]]
            results.refuse(places[number], error.reason, error.detail)

        for batch, vector_BD in self._encoder.stream(
            [Content(row["text"], row["image"], row["images"] or ()) for row in chosen],
            [row["instruction"] for row in chosen],
            on_bad=on_bad,
            on_cut=lambda number: results.cut.add(chosen[number]["content"]),
            **self._limits(),
        ):
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


@dataclass(frozen=True, slots=True)
class _Results:
    """What becomes of a window.

    Args:
        rows: its readable rows.
        refused: rows of the log without a vector.
        cut: contents whose prompt was truncated.
    """

    rows: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    cut: set[int]

    @classmethod
    def of(cls, window: pa.Table) -> _Results:
        """Rows whose picture could not be reached are left out: they stay without an entry in the log."""
        window = window.filter(pc.invert(window["is_pending"]))
        rows = window.filter(pc.is_null(window["reason"])).to_pylist()
        refused = window.filter(pc.is_valid(window["reason"])).select(["content", "reason", "detail"]).to_pylist()
        return cls(rows, refused, set())

    def refuse(self, place: int, reason: str, detail: str) -> None:
        self.refused.append({"content": self.rows[place]["content"], "reason": reason, "detail": detail})

    def table(self, numbers: Sequence[int], vector_ND: np.ndarray) -> pa.Table:
        """The rows of the log.

        Args:
            numbers: the contents that the vectors are of.
        """
        schema = vector_schema(vector_ND.shape[1])
        embedded = pa.table(
            {
                "content": pa.array(numbers, pa.int64()),
                "embedding": pa.FixedSizeListArray.from_arrays(vector_ND.ravel(), vector_ND.shape[1]),
                "reason": pa.nulls(len(numbers), pa.string()),
                "detail": pa.nulls(len(numbers), pa.string()),
                "is_cut": pa.array([number in self.cut for number in numbers], pa.bool_()),
            },
            schema=schema,
        )
        return pa.concat_tables([embedded, pa.Table.from_pylist(self.refused, schema)])
