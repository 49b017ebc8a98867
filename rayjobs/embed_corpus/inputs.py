"""What `embed-corpus` reads by its configuration: shared by the run and its preview."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mme5core.errors import InputError
from mme5core.model_folder import check_adapter, check_embeds, check_model_files, model_identity, model_width
from mme5core.peers import sentence_transformer_width
from mme5core.prompt_styles import check_style
from mme5core.readers import ReadOptions, input_files, input_identity
from mme5core.readers.shards import of_one_side
from mme5core.schemas import CONTENT_COLUMNS
from mme5core.storage import AnyPath
from mme5core.tables import shards_of
from mme5core.vectors import VectorFormat
from rayjobs.embed_corpus.config import EmbedCorpusConfig
from rayjobs.folder import JobFolder, job_folder

OWN_COLUMNS = {"id", "embedding", "embedding_int8", "embedding_binary", *(field.name for field in CONTENT_COLUMNS)}


def corpus_shards(config: EmbedCorpusConfig) -> list[AnyPath]:
    return of_one_side(shards_of(config.input, pictures=True, without=config.output or None), config.side)


def read_options(config: EmbedCorpusConfig, *, columns: Sequence[str] = ()) -> ReadOptions:
    """Pictures at servers are left there until they are embedded."""
    hosts = None if config.allow_hosts is None else tuple(config.allow_hosts)
    return ReadOptions(config.side, config.pictures, columns=tuple(columns), allow_hosts=hosts, fetch=False)


def embed_folder(config: EmbedCorpusConfig, shards: Sequence[AnyPath]) -> JobFolder:
    files = input_files(shards, config.input)
    identities = {"input": input_identity(files), "model": model_identity(config.model)}
    if config.adapter:
        identities["adapter"] = model_identity(config.adapter)
    return job_folder("embed-corpus", config, identities, files)


def checked_format(config: EmbedCorpusConfig) -> VectorFormat:
    """What will be written of each vector, once it is known that there is such a model.

    Raises:
        InputError: no such model, or vectors that it does not have.
    """
    if taken := OWN_COLUMNS & set(config.columns):
        raise InputError(f"'columns' names {sorted(taken)[0]!r}, which the job writes itself")
    width = _checked_width(config)
    try:
        return VectorFormat(width, config.vectors.dim or width, config.vectors.dtype, tuple(config.vectors.also))
    except ValueError as error:
        raise InputError(str(error)) from None


def _checked_width(config: EmbedCorpusConfig) -> int:
    try:
        if config.library == "sentence-transformers":
            if config.adapter or config.prompt_style:
                name = "adapter" if config.adapter else "prompt_style"
                raise InputError(f"'{name}' has no meaning with library=sentence-transformers")
            return sentence_transformer_width(config.model, remote_code=config.remote_code)
        check_model_files(config.model)
        if config.adapter:
            check_adapter(config.adapter)
        check_embeds(config.model, config.adapter)
        if config.prompt_style:
            check_style(config.prompt_style)
        width = model_width(config.model)
    except ValueError as error:
        if (Path(config.model) / "modules.json").is_file() and config.library == "mme5":
            raise InputError(f"{error}; a model of sentence-transformers takes library=sentence-transformers") from None
        raise InputError(str(error)) from None
    if width is None:
        here = "its configuration names no width" if Path(config.model).is_dir() else "no such folder here"
        raise InputError(f"no model at {config.model!r}: {here}, and the hub gives none of that name")
    return width
