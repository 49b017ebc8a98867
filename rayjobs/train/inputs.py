"""What `train` reads, and what can be known to be wrong at once: shared by the run and its preview."""

from __future__ import annotations

from mme5core.errors import InputError
from mme5core.model_folder import check_model_files, model_identity, model_width
from mme5core.prompt_styles import check_style
from mme5core.readers import input_files, input_identity
from mme5core.storage import AnyPath
from mme5core.tables import shards_of
from rayjobs.folder import JobFolder, job_folder
from rayjobs.train.config import TrainConfig

Sources = dict[str, list[AnyPath]]
"""The files of each entry of the input, by its place, not its path: a folder that has moved is the same source."""


def sources_of(config: TrainConfig) -> Sources:
    return {f"input[{place}]": shards_of([entry], suffixes=(".parquet",)) for place, entry in enumerate(config.input)}


def train_folder(config: TrainConfig, sources: Sources) -> JobFolder:
    files = input_files([shard for shards in sources.values() for shard in shards])
    identities = {"input": input_identity(files), "model": model_identity(config.model)}
    return job_folder("train", config, identities, files)


def check(config: TrainConfig) -> None:
    """What can be known to be wrong before the first second of training.

    Raises:
        InputError: naming the setting.
    """
    if len(set(config.input)) < len(config.input):
        raise InputError("input names a folder twice; say how often it is wanted with weights")
    if config.weights is not None and len(config.weights) != len(config.input):
        raise InputError(f"weights: {len(config.weights)} numbers for {len(config.input)} entries of input")
    if config.batch_size < config.num_workers:
        raise InputError(
            f"batch_size={config.batch_size} leaves some of num_workers={config.num_workers} without a row"
        )
    if config.lora.quantize and (config.lora.method == "none" or config.zero_stage == 3):
        raise InputError("lora.quantize: weights in 4 bits can neither train themselves nor be sharded by ZeRO-3")
    if config.loss.kind == "soft_label_kl" and not config.num_negatives:
        raise InputError("loss.kind=soft_label_kl compares hard negatives: num_negatives must be >= 1")
    try:
        check_style(config.prompt_style)
        check_model_files(config.model)
        width = model_width(config.model)
    except ValueError as error:
        raise InputError(str(error)) from None
    for dim in config.loss.matryoshka_dims:
        if dim < 1 or (width and dim > width):
            raise InputError(f"loss.matryoshka_dims: {dim} does not fit vectors of width {width}")


def check_batch_size(config: TrainConfig, num_samples: int) -> None:
    """
    Raises:
        InputError: there are fewer samples than a batch has rows.
    """
    if config.batch_size > num_samples:
        raise InputError(f"batch_size={config.batch_size} is larger than the data: {num_samples:,} samples")
