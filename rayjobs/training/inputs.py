"""What every training run reads, and what can be known to be wrong at once."""

from __future__ import annotations

from mme5core.errors import InputError
from mme5core.model_folder import check_model_files, model_identity
from mme5core.readers import input_files, input_identity
from mme5core.sample_readers import count_samples
from mme5core.sample_readers.files import sample_files
from mme5core.storage import AnyPath
from rayjobs.folder import JobFolder, job_folder
from rayjobs.preview_lines import file_lines, output_lines
from rayjobs.training.config import RunConfig

Sources = dict[str, list[AnyPath]]
"""The files of each entry of the input, by its place, not its path: a folder that has moved is the same source."""


def sources_of(config: RunConfig) -> Sources:
    return {f"input[{place}]": sample_files([entry]) for place, entry in enumerate(config.input)}


def run_folder(job: str, config: RunConfig, sources: Sources) -> JobFolder:
    """
    Args:
        job: as its manifest names it.
    """
    files = input_files([shard for shards in sources.values() for shard in shards])
    identities = {"input": input_identity(files), "model": model_identity(config.model)}
    return job_folder(job, config, identities, files)


def preview_run(config: RunConfig, sources: Sources, folder: JobFolder) -> list[str]:
    """What a run would read and do, for --dry-run.

    Raises:
        InputError: a run would refuse the input.
    """
    shards = [shard for files in sources.values() for shard in files]
    rows = sum(count_samples(shard) for shard in shards)
    rows = min(rows, config.limit or rows)
    check_batches(config, rows)
    steps = config.num_steps or max(1, int(config.num_epochs * rows / config.batch_size))
    return [
        *file_lines(shards),
        f"{rows:,} samples before any is refused; about {steps:,} steps",
        *output_lines(config.output, folder),
    ]


def check_run(config: RunConfig) -> None:
    """
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
    try:
        check_model_files(config.model)
    except ValueError as error:
        raise InputError(str(error)) from None


def check_batches(config: RunConfig, num_samples: int) -> None:
    """
    Raises:
        InputError: there are fewer samples than a batch has rows.
    """
    if config.batch_size > num_samples:
        raise InputError(
            f"batch_size={config.batch_size} is larger than the data: {num_samples:,} samples; give at most as many"
        )
