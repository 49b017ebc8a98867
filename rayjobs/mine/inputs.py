"""What `mine` reads by its configuration: shared by the run and its preview."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from mme5core.errors import InputError
from mme5core.mining.approximate import check_faiss, default_factory
from mme5core.mining.positives import positive_files
from mme5core.mining.rules import Rule, named_rules
from mme5core.mining.vector_files import VectorFiles
from mme5core.readers import input_files, input_identity
from mme5core.storage import AnyPath, locate, parquet_file
from rayjobs.folder import JobFolder, job_folder
from rayjobs.mine.config import MineConfig


@dataclass(frozen=True, slots=True)
class MineInputs:
    queries: VectorFiles
    candidates: VectorFiles
    positives: tuple[AnyPath, ...]
    rules: tuple[Rule, ...]

    def num_queries(self, limit: int | None) -> int:
        return min(len(self.queries), limit or len(self.queries))


def mine_inputs(config: MineConfig) -> MineInputs:
    """
    Raises:
        InputError: something is not there, or does not fit.
    """
    rules = _rules(config)
    queries = VectorFiles.open(config.queries, "queries", without=config.output or None)
    candidates = VectorFiles.open(config.candidates, "candidates", without=config.output or None)
    if queries.width != candidates.width:
        raise InputError(
            f"queries are vectors of width {queries.width:,} and candidates of {candidates.width:,}: they cannot be of "
            "one model"
        )
    if queries.model and candidates.model and queries.model != candidates.model:
        raise InputError(
            "queries and candidates are vectors of different models (or adapters, prompt styles, widths): "
            f"{queries.paths[0]} and {candidates.paths[0]}"
        )
    _check_columns(config, rules, queries, candidates)
    if config.search == "faiss":
        if any(rule.pool != "any" for rule in rules):
            raise InputError("search=faiss knows no pools: pool=same and pool=other need search=exact")
        if config.own_picture == "force":
            raise InputError("own_picture=force needs search=exact: a shortlist may lack the query's own picture")
        check_faiss(config.faiss.index or default_factory(len(candidates)), candidates.width)
    positives = positive_files(config.positives) if config.positives else []
    return MineInputs(queries, candidates, tuple(positives), rules)


def _check_columns(config: MineConfig, rules: tuple[Rule, ...], queries: VectorFiles, candidates: VectorFiles) -> None:
    """
    Raises:
        InputError: a rule needs a column that the vectors do not have.
    """
    wanted = [(files, config.pool_column, "pool_column names") for files in (queries, candidates)]
    if modality := next((rule.name for rule in rules if rule.modality != "any"), None):
        wanted.append((candidates, "modality", f"rule {modality!r} looks at"))
    if config.own_picture == "force":
        wanted += [
            (queries, "picture_key", "own_picture=force needs"),
            (candidates, "content_key", "own_picture=force needs"),
        ]
    for files, column, why in wanted:
        if column is not None and not files.has([column]):
            raise InputError(f"{files.setting}: no column {column!r}, which {why}")
    for files in (queries, candidates) if config.pool_column else ():
        for path in files.paths:
            kind = parquet_file(locate(path)).schema_arrow.field(config.pool_column).type
            if pa.types.is_nested(kind):
                raise InputError(
                    f"{files.setting}: pool_column={config.pool_column} is of {kind}: names or numbers are needed"
                )


def _rules(config: MineConfig) -> tuple[Rule, ...]:
    plain = {
        "top_k": config.top_k,
        "min_rank": config.min_rank,
        "max_rank": config.max_rank,
        "min_score": config.min_score,
        "max_score": config.max_score,
        "relative_margin": config.relative_margin,
        "absolute_margin": config.absolute_margin,
        "pool": config.pool,
    }
    try:
        rules = named_rules(config.rules, Rule(**plain))  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(str(error)) from None
    for rule in rules:
        if rule.needs_positives and not config.positives:
            what = f"rule {rule.name!r} refers" if config.rules else "relative_margin and absolute_margin refer"
            raise InputError(f"{what} to each query's positive: positives= is needed")
        if rule.pool != "any" and config.pool_column is None:
            raise InputError(f"pool={rule.pool} needs pool_column=, the column that names the pools")
    return tuple(rules)


def mine_folder(config: MineConfig, inputs: MineInputs) -> JobFolder:
    files = {}
    for part in (inputs.queries, inputs.candidates):
        files[part.setting] = input_identity(input_files([locate(path) for path in part.paths]))
    if inputs.positives:
        files["positives"] = input_identity(input_files(inputs.positives))
    return job_folder("mine", config, files)
