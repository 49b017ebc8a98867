"""What `rerank` and `rerank train` read by their configurations: shared by the runs and their previews."""

from __future__ import annotations

from dataclasses import dataclass

from mme5core.errors import InputError
from mme5core.model_folder import check_adapter, check_model_files, model_identity
from mme5core.readers import ReadOptions, input_files, input_identity
from mme5core.readers.shards import labels, of_one_side
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.tables import files_with, shards_of
from rayjobs.folder import JobFolder, job_folder
from rayjobs.rerank.config import RerankConfig, RerankTrainConfig
from rayjobs.training import check_run


@dataclass(frozen=True, slots=True)
class Side:
    """The shards of queries or candidates, their places below the input, and how they are read."""

    shards: list[AnyPath]
    labels: list[str]
    options: ReadOptions


def side_of(config: RerankConfig, side: str) -> Side:
    """
    Args:
        side: "query" or "target".
    """
    inputs = config.input if side == "query" or config.candidates is None else config.candidates
    shards = of_one_side(shards_of(inputs, pictures=True, without=config.output or None), side)
    hosts = None if config.allow_hosts is None else tuple(config.allow_hosts)
    return Side(shards, labels(shards, inputs), ReadOptions(side, config.pictures, allow_hosts=hosts))


def neighbour_files(config: RerankConfig) -> list[AnyPath]:
    return files_with(config.neighbours, NEIGHBOURS, "neighbours")


def rerank_folder(config: RerankConfig, queries: Side, candidates: Side, neighbours: list[AnyPath]) -> JobFolder:
    """
    Raises:
        InputError: there is no such model.
    """
    if not config.model:
        raise InputError("'model' is required: the reranker, or any vision-language model")
    try:
        check_model_files(config.model)
        if config.adapter:
            check_adapter(config.adapter)
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    files = input_files(queries.shards, config.input)
    identities = {
        "input": input_identity(files),
        "candidates": input_identity(input_files(candidates.shards)),
        "neighbours": input_identity(input_files(neighbours)),
        "model": model_identity(config.model),
    }
    if config.adapter:
        identities["adapter"] = model_identity(config.adapter)
    return job_folder("rerank", config, identities, files)


TRAINING = "rerank-train"
"""The job's name in manifests."""


def check_training(config: RerankTrainConfig) -> None:
    """What can be known to be wrong before the first second of training.

    Raises:
        InputError: naming the setting.
    """
    check_run(config)
    has_lists = bool(config.list_negatives and config.list_weight)
    if not has_lists and not config.pair_weight:
        raise InputError("pair_weight=0 and no lists (list_negatives, list_weight): there is nothing to learn")
    if config.lora.method == "none" or config.lora.train_embeddings:
        raise InputError(
            "a reranker's answers are read by the base model's head: lora.method=none and "
            "lora.train_embeddings=true would move the embeddings that many models use as their head"
        )
