"""Tests of a window's way through the encoder: what spoils a batch is refused by name, and the rest is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mme5core.corpus.embedding_worker import EmbeddingWorker
from mme5core.corpus.unembedded import CONTENTS
from mme5core.embedding_settings import EmbeddingSettings
from mme5core.images import BadImage
from mme5core.types import Content

WIDTH = 2


class OddEncoder:
    """Embeds a text as its length; a batch with the text "poison" fails, "bad" is refused, and "long" is truncated."""

    dimension = WIDTH

    def __init__(self, is_dead: bool = False) -> None:
        self.is_dead, self.num_embedded = is_dead, 0

    def stream(
        self,
        contents: Sequence[Content],
        instructions: Sequence[str | None],
        *,
        max_batch_rows: int,
        on_bad: Any = None,
        on_cut: Any = None,
        **_: Any,
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        texts = [content.text or "" for content in contents]
        for place, text in enumerate(texts):
            if text == "bad":
                on_bad(place, BadImage("broken_image", "half"))
            elif text == "long":
                on_cut(place)
        good = [place for place, text in enumerate(texts) if text != "bad"]
        for start in range(0, len(good), max_batch_rows):
            batch = good[start : start + max_batch_rows]
            if self.is_dead or any(texts[place] == "poison" for place in batch):
                raise RuntimeError("a kernel failed\nin line 7")
            self.num_embedded += len(batch)
            yield batch, np.array([[len(texts[place]), 0] for place in batch], np.float32)


def embedded(folder: Path, encoder: OddEncoder, texts: Sequence[str], batch: int) -> dict[int, Any]:
    settings = EmbeddingSettings(model="m", max_batch_rows=batch)
    rows = [{"content": number, "text": text, "is_pending": False} for number, text in enumerate(texts)]
    name = EmbeddingWorker(encoder, settings, folder).embed(pa.Table.from_pylist(rows, CONTENTS))  # type: ignore[arg-type]
    table = pa.ipc.open_file(folder / name).read_all().to_pylist()
    return {row["content"]: row for row in table}


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("places", [[0], [7], [3, 4, 19], [19]])
def test_what_spoils_a_batch_is_refused_and_every_other_row_kept(places: list[int], batch: int, tmp_path: Path) -> None:
    texts = ["poison" if place in places else "bad" if place == 10 else "x" * (place + 1) for place in range(20)]
    encoder = OddEncoder()
    rows = embedded(tmp_path, encoder, texts, batch)
    assert sorted(rows) == list(range(20))
    for place, row in rows.items():
        if place in places:
            assert (row["reason"], row["detail"]) == ("cannot_embed", "RuntimeError: a kernel failed")
        elif place == 10:
            assert row["reason"] == "broken_image"
        else:
            assert row["reason"] is None and row["embedding"] == [place + 1, 0]


def test_a_window_of_one_bad_row_is_that_rows_fault(tmp_path: Path) -> None:
    assert embedded(tmp_path, OddEncoder(), ["poison"], 8)[0]["reason"] == "cannot_embed"


def test_an_encoder_that_embeds_nothing_any_more_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a kernel failed"):
        embedded(tmp_path, OddEncoder(is_dead=True), ["a", "b"], 8)
    assert not list(tmp_path.iterdir())


def test_truncated_prompts_are_marked(tmp_path: Path) -> None:
    rows = embedded(tmp_path, OddEncoder(), ["a", "long", "poison"], 1)
    assert {number: row["is_cut"] for number, row in rows.items()} == {0: False, 1: True, 2: None}
