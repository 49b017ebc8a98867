"""The settings of a reranker's training; the defaults are UniME-V2's numbers (arXiv 2510.13515)."""

from __future__ import annotations

from typing import Literal

from mme5core.settings import key
from mme5core.training.settings import LoraSettings, RunSettings


class RerankerTraining(RunSettings):
    batch_size: int = key(64, "samples of a step, over all workers together", ge=2)
    learning_rate: float = key(2e-5, "peak learning rate", gt=0)
    lora: LoraSettings = key(LoraSettings(rank=128, alpha=256.0), "the adapter")
    list_negatives: int = key(
        5, "hard negatives beside the positive in a list: those with the highest scores; 0: no lists", ge=0, le=98
    )
    pair_weight: float = key(1.0, "of Yes for the positive and No for the hardest negative; 0: no pairs", ge=0)
    list_weight: float = key(1.0, "of the positive's number in the shuffled list; 0: no lists", ge=0)
    among: Literal["vocabulary", "answers"] = key(
        "vocabulary",
        "a token's probability is shared with the whole vocabulary, as where a model writes its answer, or with the "
        "tokens of the possible answers, as where it is scored",
    )
    max_text_tokens: int = key(2048, "longest text of a query or candidate, tokens; stored with the model", ge=1)
