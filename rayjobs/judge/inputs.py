"""What `judge` reads by its configuration: shared by the run and its preview."""

from __future__ import annotations

from mme5core.errors import InputError
from mme5core.model_folder import check_adapter, check_model_files, model_identity
from mme5core.readers import input_files, input_identity
from mme5core.readers.shards import of_one_side
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.tables import files_with, shards_of
from rayjobs.folder import JobFolder, job_folder
from rayjobs.judge.config import JudgeConfig


def neighbour_files(config: JudgeConfig) -> list[AnyPath]:
    return files_with(config.neighbours, NEIGHBOURS, "neighbours")


def candidate_shards(config: JudgeConfig) -> list[AnyPath]:
    """Of the corpus; none where the candidates are positives of samples."""
    if config.candidates is None:
        return []
    return of_one_side(shards_of(config.candidates, pictures=True, without=config.output or None), "target")


def judge_folder(
    config: JudgeConfig, samples: list[AnyPath], neighbours: list[AnyPath], candidates: list[AnyPath]
) -> JobFolder:
    """
    Raises:
        InputError: there is no such model.
    """
    files = input_files(samples, config.input)
    identities = {"input": input_identity(files), "neighbours": input_identity(input_files(neighbours))}
    if candidates:
        identities["candidates"] = input_identity(input_files(candidates))
    return job_folder("judge", config, identities | _identities_of_judge(config), files)


def _identities_of_judge(config: JudgeConfig) -> dict[str, str]:
    own = config.judge
    if not own.model:
        raise InputError("'judge.model' is required: the vision-language model that judges")
    if own.base_url:
        own.server.check("judge", config.prices, config.budget)
        return {"judge": f"served {own.model}"}
    try:
        check_model_files(own.model)
        if own.adapter:
            check_adapter(own.adapter)
    except ValueError as error:
        raise InputError(f"judge.model: {error}") from None
    return {"judge": model_identity(own.model)} | ({"adapter": model_identity(own.adapter)} if own.adapter else {})
