"""The stages of the stream: a task that reads contents, an actor that embeds them; both only translate columns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mme5core.corpus.embedding_worker import EmbeddingWorker
from mme5core.corpus.unembedded import ReadUnembedded
from mme5core.embedding_settings import EmbeddingSettings
from mme5core.errors import first_line
from mme5core.processors import threads_per_process

LoadEncoder = Callable[[EmbeddingSettings], Any]


@dataclass(frozen=True, slots=True)
class ReadWindows:
    """Shards in, windows out: each one column in Arrow's stream format, so that Ray neither joins nor cuts it."""

    read: ReadUnembedded

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for window in self.read.windows(batch.to_pylist()):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, window.schema) as writer:
                writer.write_table(window)
            yield pa.table({"window": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})


class EmbedActor:
    """Windows in; the names of their files in the log out, or why the model cannot be loaded, or what failed.

    Args:
        uses_gpu: whether Ray has given the actor a GPU.
        workers_here: actors that share its node, for the threads of each.
    """

    def __init__(
        self,
        load: LoadEncoder,
        settings: EmbeddingSettings,
        log: Path,
        dimension: int,
        uses_gpu: bool,
        workers_here: int,
    ) -> None:
        if not uses_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves an actor without GPUs all that it could see
            settings = settings.model_copy(update={"device": "cpu"})
        import torch

        if not uses_gpu:
            torch.set_num_threads(threads_per_process(workers_here))
        self._problem = ""
        try:
            encoder = load(settings)
            if encoder.dimension != dimension:
                raise ValueError(f"its vectors have width {encoder.dimension}, its files say {dimension}")
            self._worker = EmbeddingWorker(encoder, settings, log)
        except Exception as error:  # raised here, it would come out as Ray's tracebacks
            self._problem = f"cannot load model {settings.model!r}: {first_line(error)}"

    def __call__(self, batch: pa.Table) -> dict[str, list[str]]:
        if self._problem:
            return {"file": [""], "unloadable": [self._problem], "failure": [""]}
        try:
            window = pa.ipc.open_stream(pa.py_buffer(batch["window"][0].as_py())).read_all()
            return {"file": [self._worker.embed(window)], "unloadable": [""], "failure": [""]}
        except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
            return {"file": [""], "unloadable": [""], "failure": [f"cannot embed: {first_line(error)}"]}
