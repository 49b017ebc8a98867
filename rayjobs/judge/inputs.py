"""What `judge` reads by its configuration: shared by the run and its preview."""

from __future__ import annotations

from mme5core.errors import InputError
from mme5core.model_folder import check_adapter, check_model_files, model_identity
from mme5core.readers import input_files, input_identity
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.tables import files_with, shards_of
from rayjobs.folder import JobFolder, job_folder
from rayjobs.judge.config import JudgeConfig


def sample_files(config: JudgeConfig) -> list[AnyPath]:
    return shards_of(config.input, suffixes=(".parquet",))


def neighbour_files(config: JudgeConfig) -> list[AnyPath]:
    return files_with(config.neighbours, NEIGHBOURS, "neighbours")


def judge_folder(config: JudgeConfig, samples: list[AnyPath], neighbours: list[AnyPath]) -> JobFolder:
    """
    Raises:
        InputError: there is no such model.
    """
    if not config.judge.model:
        raise InputError("'judge.model' is required: the vision-language model that judges")
    try:
        check_model_files(config.judge.model)
        if config.judge.adapter:
            check_adapter(config.judge.adapter)
    except ValueError as error:
        raise InputError(f"judge.model: {error}") from None
    files = input_files(samples, config.input)
    identities = {
        "input": input_identity(files),
        "neighbours": input_identity(input_files(neighbours)),
        "judge": model_identity(config.judge.model),
    }
    if config.judge.adapter:
        identities["adapter"] = model_identity(config.judge.adapter)
    return job_folder("judge", config, identities, files)
