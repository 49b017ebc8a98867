"""What `synth` reads and plans by its configuration: shared by the run and its preview."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain

from mme5core.corpus.picture_filters import COLUMNS
from mme5core.errors import InputError
from mme5core.readers import ReadOptions, input_files, input_identity
from mme5core.readers.picture_at import SUFFIXES_WITH_PICTURES
from mme5core.schemas import HOLDOUT, NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.synthesis.plan import PairRules, PlanSettings
from mme5core.tables import column_tables, files_with, shards_of
from rayjobs.folder import JobFolder, job_folder
from rayjobs.synth.config import SynthConfig


def corpus_shards(config: SynthConfig) -> list[AnyPath]:
    return shards_of(config.input, suffixes=SUFFIXES_WITH_PICTURES, pictures=True, without=config.output or None)


def synth_folder(config: SynthConfig, shards: Sequence[AnyPath]) -> JobFolder:
    files = input_files(shards, config.input)
    identities = {"input": input_identity(files)}
    for name, read in (("neighbours", neighbour_files(config)), ("holdout", holdout_files(config))):
        if read is not None:
            identities[name] = input_identity(input_files(read))
    return job_folder("synth", config, identities, files)


def read_options(config: SynthConfig) -> ReadOptions:
    hosts = None if config.allow_hosts is None else tuple(config.allow_hosts)
    columns = COLUMNS if config.filters.need_columns else ()
    return ReadOptions(pictures=config.pictures, columns=columns, allow_hosts=hosts)


def holdout_files(config: SynthConfig) -> list[AnyPath] | None:
    return None if config.holdout is None else files_with(config.holdout, HOLDOUT, "holdout")


def neighbour_files(config: SynthConfig) -> list[AnyPath] | None:
    return None if config.neighbours is None else files_with(config.neighbours, NEIGHBOURS, "neighbours")


def plan_settings(config: SynthConfig) -> PlanSettings:
    """
    Raises:
        InputError: it cannot be planned so.
    """
    holdout: dict[str, set[str]] = defaultdict(set)
    for table in chain.from_iterable(column_tables(file, HOLDOUT, "holdout") for file in holdout_files(config) or ()):
        for row in table.to_pylist():
            holdout[row["image_id"]].add(row["language"])
    try:
        return PlanSettings(
            seed=config.seed,
            samples_per_image=config.samples_per_image,
            tasks=config.tasks,
            combinations=config.combinations,
            languages=config.languages,
            num_negatives=config.num_negatives,
            pairs=PairRules(**config.pairs.model_dump()),
            holdout={image_id: frozenset(languages) for image_id, languages in holdout.items()},
        )
    except ValueError as error:
        raise InputError(str(error)) from None
