"""What `evaluate` reads by its configuration: shared by the run and its preview."""

from __future__ import annotations

from pathlib import Path

from mme5core.errors import InputError
from mme5core.model_folder import model_identity
from mme5core.readers import input_files, input_identity
from mme5core.tables import shards_of
from rayjobs.evaluate.config import AlsoConfig, EvaluateConfig
from rayjobs.folder import JobFolder, job_folder


def evaluate_folder(config: EvaluateConfig) -> JobFolder:
    """
    Raises:
        InputError: something that the configuration names is not there.
    """
    if not config.input and not config.model:
        raise InputError("'input' (vectors) or 'model' is required")
    return job_folder("evaluate", config, identities(config))


def identities(config: EvaluateConfig) -> dict[str, str]:
    """What is read, by content: vectors, models and benchmarks of every set."""
    by_key: dict[str, str] = {}
    named: dict[str, EvaluateConfig | AlsoConfig] = {"": config, **config.also}
    for name, one in named.items():
        suffix = f" ({name})" if name else ""
        if one.input:
            by_key[f"input{suffix}"] = input_identity(input_files(shards_of(one.input, suffixes=(".parquet",))))
        if one.model:
            by_key[f"model{suffix}"] = model_identity(one.model)
        if one.benchmark:
            files = [Path(one.benchmark) / f"{part}.parquet" for part in ("queries", "candidates")]
            for file in files:
                if not file.is_file():
                    raise InputError(f"no benchmark at {one.benchmark!r}: it has no {file.name}")
            by_key[f"benchmark{suffix}"] = input_identity(input_files(files))
    return by_key
