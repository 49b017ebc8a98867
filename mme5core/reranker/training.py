"""What one process of a reranker's training makes of its settings."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch

from mme5core.encoder import Encoder
from mme5core.encoder.loading import LoadedModel, check_finite
from mme5core.encoder.module import EmbeddingModel
from mme5core.encoder.saving import save_model
from mme5core.judge.answering import AnsweringModel, load_with_head
from mme5core.reranker.answer_task import AnswerTask
from mme5core.reranker.settings import RerankerTraining
from mme5core.sample_table import SampleTable
from mme5core.training.loaded import (
    Loaded,
    attention_here,
    checkpoints_of,
    device_here,
    device_of_weights,
    make_trainable,
)
from mme5core.training.process_run import TrainingRun
from mme5core.training.run_files import SAMPLES_FILE


class TrainableReranker(Encoder):
    """A model whose states train, as an encoder's do, and that is stored as a reranker.

    Args:
        list_negatives, max_text_tokens: of its training, stored with it.
    """

    def __init__(self, loaded: LoadedModel, *, list_negatives: int, max_text_tokens: int) -> None:
        super().__init__(loaded.model, loaded.backbone, base=loaded.base, merged_adapter=loaded.merged_adapter)
        self.module = EmbeddingModel(loaded.model, loaded.backbone, normalize=False)
        self._stored = {"list_negatives": list_negatives, "max_text_tokens": max_text_tokens}

    def save(self, folder: str | os.PathLike[str], *, include_base: bool = False) -> None:
        save_model(
            Path(folder),
            self.module.model,
            self.backbone,
            settings={"format": 1, "kind": "reranker", **self._stored},
            base=self.base,
            merged_adapter=self._merged_adapter,
            include_base=include_base,
        )


def load_reranker(run: TrainingRun) -> Loaded:
    """
    Raises:
        ValueError: a base that does not load or cannot answer, targets that it lacks, checkpoints of another run, ...
    """
    settings = run.settings
    assert isinstance(settings, RerankerTraining)
    torch.manual_seed(settings.seed)
    where = device_of_weights(settings)
    loaded = load_with_head(
        settings.model,
        adapter=None,
        dtype=settings.dtype,
        merge_adapter=True,
        attention=attention_here(),
        remote_code=settings.remote_code,
        quantize=settings.lora.quantize,
    )
    # A copy: the model may use the same weights as embeddings, of which ZeRO-3 leaves each process a part.
    head = copy.deepcopy(loaded.head).requires_grad_(False).to(device_here())
    answering = AnsweringModel(loaded.model, head, loaded.backbone, max_text_tokens=settings.max_text_tokens)
    reranker = TrainableReranker(
        loaded,
        list_negatives=settings.list_negatives,
        max_text_tokens=settings.max_text_tokens,
    )
    if settings.lora.quantize is None:
        reranker.module.to(where)
    check_finite(reranker.module.model, settings.model)
    make_trainable(reranker, settings)
    task = AnswerTask(
        answering,
        list_negatives=settings.list_negatives,
        pair_weight=settings.pair_weight,
        list_weight=settings.list_weight,
        among=settings.among,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    return Loaded(reranker, task, SampleTable(run.work / SAMPLES_FILE), None, checkpoints_of(run))
