"""The configuration of every job: keys, units, defaults, and how recipe and overrides become one."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

JOBS = ("synth", "train", "embed-corpus", "mine", "judge", "rerank", "evaluate", "demo")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line for people."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)


class _Loader(yaml.SafeLoader):
    """YAML as people mean it here: `no` is Norwegian, 2024-01-31 is a folder, 1e-4 is a number."""


_PLAIN = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _PLAIN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def _key(default: Any, description: str, *, rows: bool = True, **rules: Any) -> Any:
    """A key. `rows=False`: it does not change what comes out, so two runs of one folder may differ in it."""
    return Field(default, description=description, json_schema_extra={"rows": rows}, **rules)


def _required(description: str) -> Any:
    return Field(..., description=description, json_schema_extra={"rows": True})


class JobConfig(_Section):
    output: str = _key("", "folder that the job writes", rows=False)
    seed: int = _key(0, "every random choice follows from it")
    limit: int | None = _key(None, "take only the first N rows of the input", ge=1)
    num_workers: int = _key(1, "actors or training processes", rows=False, ge=1)


class InputJobConfig(JobConfig):
    input: list[str] = _required("file, folder, glob, or a list of these")

    @field_validator("input", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, list) else [value]

    @field_validator("input")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if not value or not all(value):
            raise ValueError("no input given")
        return value


class TeacherConfig(_Section):
    base_url: str = _key("", "OpenAI-compatible endpoint, as http://host:8000/v1; key in OPENAI_API_KEY", rows=False)
    model: str = _key("", "model name at the endpoint")
    temperature: float = _key(1.0, "sampling temperature", ge=0)
    max_tokens: int = _key(2048, "longest answer, tokens", ge=1)
    concurrency: int = _key(32, "calls (or batches) in flight per worker", rows=False, ge=1)
    batch_size: int | None = _key(
        None,
        "ask through the Batch API, at most so many calls a batch: half the price at OpenAI, answers within a day; "
        "null: call by call",
        rows=False,
        ge=1,
        le=50_000,
    )
    batch_poll_s: float = _key(30.0, "how often to ask for a batch, seconds", rows=False, gt=0)
    timeout_s: float = _key(120.0, "longest wait for one answer, seconds", rows=False, gt=0)
    max_attempts: int = _key(5, "tries of one call before it is left for the next run", rows=False, ge=1)
    requests_per_minute: float | None = _key(None, "over all workers; null: no limit but 429", rows=False, gt=0)
    tokens_per_minute: float | None = _key(
        None, "of prompts and answers, over all workers; null: no limit but 429", rows=False, gt=0
    )
    cache: str | None = _key(
        None, "folder of answers that runs share: what was asked before, to the letter, is not asked again", rows=False
    )


class PriceConfig(_Section):
    prompt: float | None = _key(None, "USD per million prompt tokens", rows=False, ge=0)
    completion: float | None = _key(None, "USD per million completion tokens", rows=False, ge=0)


class BudgetConfig(_Section):
    calls: int | None = _key(None, "stop (code 3) after this many calls, over all runs of the folder", rows=False, ge=0)
    usd: float | None = _key(None, "stop (code 3) after this much money, over all runs; needs prices", rows=False, ge=0)


class PairsConfig(_Section):
    positive_ranks: tuple[int, int] = _key((1, 3), "first and last rank among neighbours that may be the positive")
    negative_ranks: tuple[int, int] = _key((4, 10), "first and last rank that may be a hard negative")
    positive_scores: tuple[float | None, float | None] = _key(
        (None, None), "lowest and highest similarity of a positive (MegaPairs); null: any"
    )
    negative_scores: tuple[float | None, float | None] = _key(
        (None, None), "lowest and highest similarity of a hard negative; null: any"
    )
    query_as_negative: bool = _key(False, "the query's own picture is the first hard negative of a picture (MegaPairs)")


class FilterConfig(_Section):
    """What of a corpus's pictures is used; a filter refuses pictures of which it does not know the value."""

    nsfw: list[str] = _key([], "values of the column NSFW to take, as [UNLIKELY]; empty: all")
    max_punsafe: float | None = _key(None, "highest probability of being unsafe, column punsafe")
    max_pwatermark: float | None = _key(None, "highest probability of a watermark, column pwatermark")
    min_similarity: float | None = _key(None, "lowest similarity of picture and caption, column similarity")
    min_side: int | None = _key(None, "shortest side, pixels", ge=1)
    max_aspect_ratio: float | None = _key(None, "longest side over shortest", ge=1)


class SynthConfig(InputJobConfig):
    samples_per_image: int = _key(1, "samples planned for each picture", ge=1)
    languages: list[str] | None = _key(None, "language codes; null: all 93, high-resource ones more often")
    tasks: dict[str, float] = _key(
        {"classification": 1.0, "vqa": 1.0, "retrieval": 2.0}, "share of each task, relative; only those named"
    )
    combinations: dict[str, float] = _key(
        {}, "share of each modality combination within its task, relative; only those named, all where none of it is"
    )
    num_negatives: int = _key(1, "hard negatives per sample", ge=1)
    min_self_evaluation: float | None = _key(
        None, "lowest mean of the teacher's scores of its own draft, 1 to 5; null: any", ge=1, le=5
    )
    near_duplicate: float | None = _key(
        0.9,
        "share of character trigrams from which two samples of the same pictures are one; null: keep all",
        gt=0,
        le=1,
    )
    filters: FilterConfig = _key(FilterConfig(), "which pictures to use")
    pairs: PairsConfig = _key(PairsConfig(), "which neighbours become positives and hard negatives")
    pictures: str | None = _key(None, "folder or address that paths of pictures start from; null: the Parquet's")
    neighbours: str | None = _key(None, "folder or file of similar pictures, for samples with a picture document")
    holdout: str | None = _key(None, "Parquet of (image_id, language) pairs never to draw: a benchmark's")
    teacher: TeacherConfig = _key(TeacherConfig(), "the MLLM that writes the samples")
    prices: PriceConfig = _key(PriceConfig(), "what the teacher costs", rows=False)
    budget: BudgetConfig = _key(BudgetConfig(), "what may be spent", rows=False)


class GalleryConfig(JobConfig):
    input: str = _required("folder that synth wrote")
    output: str = _key("", "HTML file to write; empty: beside the folder, INPUT-gallery.html", rows=False)
    num_samples: int = _key(120, "samples shown, spread over tasks, modality combinations and languages", ge=0)
    num_refused: int = _key(30, "refusals shown of each reason", ge=0)
    title: str = _key("", "heading of the page; empty: the folder's name")


class ExportConfig(JobConfig):
    input: str = _required("folder that synth wrote")
    layout: Literal["hub", "datasets"] = _key(
        "datasets", "hub: mmE5's columns, a folder per task, pictures as files; datasets: our columns, pictures inside"
    )
    rows_per_file: int = _key(20_000, "samples of one file", ge=1)
    title: str = _key("", "heading of the card; empty: the folder's name")


class LoraConfig(_Section):
    method: Literal["lora", "dora", "none"] = _key(
        "lora",
        "the adapter's kind; none: full fine-tuning in float32, of all weights of the towers that targets names "
        "(norms, gates and embeddings too)",
    )
    rank: int = _key(8, "rank of the adapter", ge=1)
    alpha: float = _key(64.0, "scale is alpha / rank", gt=0)
    rank_stabilised: bool = _key(False, "scale by alpha / sqrt(rank) instead")
    dropout: float = _key(0.0, "dropout on the adapter's input", ge=0, lt=1)
    dropout_on: Literal["input", "low_rank"] = _key(
        "input",
        "dora: dropout on the input of base and adapter, as published, or, faster, of the adapter alone",
    )
    targets: str | list[str] = _key(
        "language", "linear layers of: language, vision, all; mme5; a list of name endings; a regular expression"
    )
    train_embeddings: bool = _key(False, "train the token embeddings too, all of them")
    quantize: Literal["nf4"] | None = _key(None, "hold the frozen weights in 4 bits (QLoRA); needs a GPU")


class LossConfig(_Section):
    kind: Literal["info_nce", "soft_label_kl"] = _key(
        "info_nce", "InfoNCE; or the divergence from a judge's scores (UniME-V2), which samples must bring"
    )
    symmetric: bool = _key(False, "InfoNCE from document to query too, the mean of both")
    hardness: float = _key(0.0, "weight of near negatives, exp(hardness x similarity); 9 in LLaVE", ge=0)
    margin: float | None = _key(
        None, "leave out negatives as similar as the positive less this; null: none", ge=-2, le=2
    )
    margin_kind: Literal["absolute", "relative"] = _key(
        "absolute", "the margin is a similarity, or a share of the positive's"
    )
    matryoshka_dims: list[int] = _key([], "widths whose first columns shall be usable alone; empty: the whole only")
    learn_temperature: bool = _key(False, "learn one temperature for each task of the samples, from `temperature` on")
    temperature_learning_rate: float = _key(1e-3, "of the temperatures' logarithms", gt=0)


class TrainConfig(InputJobConfig):
    model: str = _required("base model: checkpoint folder or hub id")
    num_workers: int = _key(1, "training processes; the contrastive batch is split over them", rows=False, ge=1)
    use_gpu: bool | None = _key(None, "one accelerator per worker; null: if the cluster has any", rows=False)
    batch_size: int = _key(256, "contrastive batch, rows over all workers together", ge=2)
    weights: list[float] | None = _key(
        None, "how often batches come from each entry of input, relative; null: every row once an epoch"
    )
    interleave_rows: int | None = _key(
        None, "rows of a batch from one entry of input and modality combination; null: all of them", ge=1
    )
    num_steps: int | None = _key(None, "optimizer steps; null: num_epochs", ge=1)
    num_epochs: float = _key(1.0, "passes over the data", gt=0)
    chunk_rows: int = _key(256, "rows of one forward pass at most; with dropout another draw", rows=False, ge=1)
    chunk_tokens: int = _key(
        1 << 20, "rows x longest row of one forward pass at most; with dropout another draw", rows=False, ge=1
    )
    grad_cache: bool = _key(
        False, "keep the activations of one chunk only, for a second forward pass; same numbers", rows=False
    )
    activation_checkpointing: bool = _key(
        False, "keep each layer's input only, and compute the rest again in the backward pass", rows=False
    )
    tower_once: bool = _key(
        True, "run a vision tower in which nothing trains once per distinct picture and step", rows=False
    )
    learning_rate: float = _key(1e-5, "peak learning rate", gt=0)
    warmup_ratio: float = _key(0.05, "share of the steps with rising learning rate", ge=0, le=1)
    weight_decay: float = _key(0.0, "of AdamW", ge=0)
    max_grad_norm: float = _key(5.0, "gradients are clipped to this norm", gt=0)
    temperature: float = _key(0.02, "divides the similarities", gt=0)
    num_negatives: int = _key(1, "hard negatives of each query", ge=0)
    negatives: Literal["own", "all"] = _key("own", "hard negatives that a query sees: its own, or the whole batch's")
    loss: LossConfig = _key(LossConfig(), "the loss")
    lora: LoraConfig = _key(LoraConfig(), "the adapter")
    prompt_style: str = _key("mme5", "how contents become prompts; stored with the model")
    remote_code: bool = _key(False, "run code that comes with the base model; it can do anything that you can")
    max_tokens: int = _key(256, "longest prompt, tokens", ge=4)
    autocast: Literal["none", "bfloat16"] = _key("none", "precision of the matrix products")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _key(
        "auto", "dtype of the frozen weights; auto: the checkpoint's own"
    )
    zero_stage: Literal[0, 1, 2, 3] = _key(
        2, "DeepSpeed ZeRO stage; 0: every worker holds all, without DeepSpeed", rows=False
    )
    save_every: int = _key(50, "steps between checkpoints", rows=False, ge=1)
    checkpoints: str | None = _key(
        None, "where checkpoints go: folder, or an address such as s3://bucket/run; null: in output", rows=False
    )
    keep_checkpoints: int = _key(2, "checkpoints kept", rows=False, ge=1)
    picture_cache_mb: int = _key(
        512, "prepared pictures that each worker keeps from step to step, MB", rows=False, ge=0
    )
    picture_threads: int = _key(1, "threads of each worker that decode pictures beside the training", rows=False, ge=1)
    tower_features_mb: int = _key(
        4096,
        "tower_once: of a step's features, what stays on the accelerator, MB; the rest waits in host memory",
        rows=False,
        ge=0,
    )
    max_failures: int = _key(2, "restarts after a lost worker, before the job fails", rows=False, ge=0)


class InstructionConfig(_Section):
    T: str | None = _key(None, "for rows of text that bring none")
    I: str | None = _key(None, "for rows of one picture that bring none")
    IT: str | None = _key(None, "for rows of text and picture that bring none")


class VectorsConfig(_Section):
    dim: int | None = _key(None, "keep the first columns only, at unit length again (Matryoshka); null: all", ge=1)
    dtype: Literal["float32", "float16"] = _key("float32", "of the column embedding")
    also: list[Literal["int8", "binary"]] = _key(
        [], "columns beside it: embedding_int8, calibrated on the corpus; embedding_binary, eight columns a byte"
    )

    @field_validator("also")
    @classmethod
    def _in_one_order(cls, value: list[str]) -> list[str]:
        return sorted(set(value))


class EmbedCorpusConfig(InputJobConfig):
    model: str = _required("checkpoint, train's model folder, adapter folder, or hub id")
    side: Literal["both", "query", "target"] = _key(
        "both", "of MMEB and XTD files, which hold queries and candidates: which to embed"
    )
    pictures: str | None = _key(
        None, "folder or address that paths of pictures start from; null: their file's own folder", rows=False
    )
    library: Literal["mme5", "sentence-transformers"] = _key(
        "mme5", "what runs the model; sentence-transformers: any model of that library, for comparison"
    )
    adapter: str | None = _key(None, "adapter folder to put on the model")
    prompt_style: str | None = _key(None, "how contents become prompts; null: the one stored with the model")
    max_tokens: int | None = _key(None, "of one prompt; what is longer is cut; null: as stored with the model", ge=1)
    remote_code: bool = _key(False, "run code that comes with the model; it can do anything that you can")
    instruction: InstructionConfig = _key(InstructionConfig(), "instructions by modality")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _key("auto", "of the model; auto: the checkpoint's own")
    device: str = _key("auto", "auto, cpu, cuda", rows=False)
    batch_size: int = _key(32, "rows of one forward pass at most", rows=False, ge=1)
    max_batch_tokens: int = _key(16_384, "rows x longest row of one forward pass at most", rows=False, ge=1)
    max_batch_pictures: int | None = _key(
        None, "distinct pictures of one forward pass at most; null: as many as rows", rows=False, ge=1
    )
    picture_threads: int = _key(1, "threads of each worker that decode pictures beside the model", rows=False, ge=1)
    window_rows: int = _key(1024, "rows sorted by length together", rows=False, ge=1)
    vectors: VectorsConfig = _key(VectorsConfig(), "what is written of each vector")
    columns: list[str] = _key([], "columns of the input to write beside the vectors")
    rows_per_file: int = _key(100_000, "rows of one output file", ge=1)


class AlsoConfig(_Section):
    input: list[str] | None = _key(None, "vectors; null: those above")
    model: str | None = _key(None, "model; null: the one above")
    benchmark: str | None = _key(None, "benchmark; null: the one above")

    @field_validator("input", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, list) else [value]


class EvaluateConfig(JobConfig):
    input: list[str] | None = _key(None, "vectors as embed-corpus writes them: folder, file, glob or list")
    model: str | None = _key(None, "or a model, which embeds the benchmark here and now")
    benchmark: str = _required("folder with queries.parquet and candidates.parquet")
    also: dict[str, AlsoConfig] = _key({}, "further scores by name, each written to metrics-NAME.json")
    image_instruction: str | None = _key(None, "for candidates that are pictures, where a model embeds them")
    batch_size: int = _key(32, "rows of one forward pass, where a model embeds", rows=False, ge=1)
    num_examples: int = _key(12, "rankings shown with their pictures in the report", ge=0)
    title: str = _key("", "heading of the report; empty: the benchmark's name")

    @field_validator("input", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, list) else [value]


class DemoConfig(JobConfig):
    output: str = _key("runs/demo", "folder below which each job gets its own", rows=False)
    cache: str = _key("~/.cache/mme5", "where the trained base model is kept between demos", rows=False)
    base_steps: int = _key(520, "training steps of the base model", rows=False, ge=1)
    base_batch_size: int = _key(512, "pictures in one step of the base model", rows=False, ge=2)
    num_workers: int = _key(2, "training processes of the train job", rows=False, ge=1)
    teacher_port: int = _key(0, "port of `demo teacher`; 0: a free one", rows=False, ge=0)


CONFIGS: dict[str, type[JobConfig]] = {
    "synth": SynthConfig,
    "train": TrainConfig,
    "embed-corpus": EmbedCorpusConfig,
    "evaluate": EvaluateConfig,
    "demo": DemoConfig,
}
# Of verbs that have keys of their own, by job and verb.
VERB_CONFIGS: dict[str, type[JobConfig]] = {"synth gallery": GalleryConfig, "synth export": ExportConfig}


def config_of(name: str) -> type[JobConfig]:
    """The keys of a job, or of a job and a verb."""
    return VERB_CONFIGS.get(name) or CONFIGS[name]


def load_config(job: str, recipe: str | None, overrides: Sequence[str]) -> JobConfig:
    """The job's configuration: its defaults, then its section of the recipe, then the overrides.

    Args:
        job: or job and verb, where the verb has keys of its own; of a recipe it takes what the job wrote as its input.
        recipe: a YAML file, or the name of one in `rayjobs/recipes/`.
        overrides: `key.sub=value`, values read as YAML.

    Raises:
        ConfigError: quoting what was typed, and the nearest thing that exists.
    """
    values = _read_recipe(job.partition(" ")[0], recipe) if recipe else {}
    if " " in job:
        values = {"input": values["output"]} if "output" in values else {}
    for override in overrides:
        _apply(values, override, config_of(job))
    try:
        return config_of(job).model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, job, overrides)) from None


def resolve_paths(config: JobConfig) -> JobConfig:
    """The configuration with absolute folders: workers run in other ones."""
    update = {"output": str(Path(config.output).expanduser().resolve())} if config.output else {}
    for name in ("model", "adapter", "pictures"):
        value = getattr(config, name, None)
        if value and Path(value).expanduser().is_dir():
            update[name] = str(Path(value).expanduser().resolve())
    if isinstance(config, SynthConfig) and config.teacher.cache:
        cache = str(Path(config.teacher.cache).expanduser().resolve())
        config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"cache": cache})})
    return config.model_copy(update=update)


def fingerprint(config: JobConfig, **identities: str) -> str:
    """16 hex digits over every key that changes rows, and over what was read (input, model, ...)."""
    kept = {"/".join(path): value for path, value, field in walk(config) if changes_rows(field)}
    # Paths name things; what they hold is in `identities`, and may move.
    for name in _PATHS:
        kept.pop(name, None)
    if "also" in kept:
        kept["also"] = sorted(kept["also"])
    text = json.dumps([kept, identities], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_PATHS = ("input", "model", "adapter", "neighbours", "holdout", "benchmark")


def row_keys(config: JobConfig) -> dict[str, Any]:
    """The keys that change rows, as stored beside the fingerprint to say what differs."""
    return {".".join(path): value for path, value, field in walk(config) if changes_rows(field)}


def walk(config: BaseModel, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(path, value, field) of every key, sections opened."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from walk(value, (*prefix, name))
        else:
            if isinstance(value, dict):
                value = {k: v.model_dump() if isinstance(v, BaseModel) else v for k, v in value.items()}
            yield (*prefix, name), value, field


def changes_rows(field: Any) -> bool:
    return bool((field.json_schema_extra or {}).get("rows", True))


def recipe_names() -> list[str]:
    folder = resources.files("rayjobs") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _read_recipe(job: str, recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if not path.is_file():
        named = resources.files("rayjobs") / "recipes" / f"{recipe}.yaml"
        if not named.is_file():
            raise ConfigError(f"no recipe {recipe!r}: not a file, and not one of {', '.join(recipe_names())}")
        text = named.read_text()
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe {recipe!r} cannot be read: {error}") from None
    try:
        values = _Loader(text).get_single_data() or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {recipe!r}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {recipe!r}: expected keys and values, got a {type(values).__name__}")
    if not any(name in JOBS for name in values):
        return values
    for name in values:
        if name not in JOBS:
            raise ConfigError(f"recipe {recipe!r}: unknown section {name!r}{_nearest(str(name), JOBS)}")
    if job not in values:
        raise ConfigError(f"recipe {recipe!r} has no section {job!r}; it has {', '.join(values)}")
    section = values[job] or {}
    if not isinstance(section, dict):
        raise ConfigError(f"recipe {recipe!r}: section {job!r} must hold keys and values")
    return section


def _apply(values: dict[str, Any], override: str, model: type[BaseModel]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"cannot read {override!r}: overrides are key=value or key.sub=value")
    try:
        value = _Loader(text).get_single_data() if text else ""
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, start=1):
        inner = values.setdefault(parent, _default_weights(model, parents[:depth]))
        if not isinstance(inner, dict):
            raise ConfigError(f"cannot set {key!r}: {parent!r} is not a section")
        values = inner
    values[last] = value


def _default_weights(model: type[BaseModel], path: Sequence[str]) -> dict[str, Any]:
    """What a key that holds a mapping has by default, so that `tasks.vqa=0` leaves the other tasks as they are."""
    field = model.model_fields.get(path[0])
    for name in path[1:]:
        inner = field.annotation if field else None
        field = inner.model_fields.get(name) if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    return dict(field.default) if field is not None and isinstance(field.default, dict) else {}


def _explain(error: ValidationError, job: str, overrides: Sequence[str]) -> str:
    """The first problem, as one line with the key as it was typed; a misspelt key before what it leaves missing."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    known = [".".join(path) for path in _known_keys(config_of(job))]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        typed = [override.partition("=")[0] for override in overrides]
        key = next((name for name in typed if name.startswith(f"{key}.")), key)
        # Below a name that people choose (also.NAME.key) the known keys are those of its section.
        return f"unknown key {key!r}{_nearest(key, known)}"
    last = problem["loc"][-1]
    if problem["input"] is None and isinstance(last, str) and ":" in last:
        name, _, value = last.partition(":")
        return f"{key.removesuffix('.' + last)}: {last!r} has no value; YAML wants a space, as in {{{name}: {value}}}"
    # Pydantic adds the alternatives that it tried behind the key.
    while key and key not in known and "." in key:
        key = key.rpartition(".")[0]
    if problem["type"] == "missing":
        return f"{key!r} is required: {_description(config_of(job), key)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}={problem['input']!r}: {message[:1].lower()}{message[1:]}{_hint(key, problem, known)}"


def _hint(key: str, problem: Any, known: Sequence[str]) -> str:
    """How to write what was probably meant: values are read as YAML."""
    if problem["type"] == "list_type":
        return f": write {key}=[{problem['input']}]"
    if problem["type"] in ("model_type", "dict_type"):
        below = [name for name in known if name.startswith(f"{key}.")]
        return f"; its keys are {', '.join(below)}" if below else ""
    if problem["type"] == "string_type":
        return f"; values are read as YAML, so quote this one: '{key}=\"...\"'"
    return ""


def _description(model: type[BaseModel], key: str) -> str:
    field = model.model_fields.get(key.split(".")[0])
    return field.description or "" if field else ""


def _known_keys(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _known_keys(inner, (*prefix, name))


def _nearest(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; known: {', '.join(known)}"
