"""What a job would do: its effective configuration, what it would read, and what that would cost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mme5core.errors import first_line
from mme5core.readers import InputError, read_rows
from mme5core.readers.shards import shard_bytes
from mme5core.storage import AnyPath, parquet_file
from rayjobs.config import (
    ConfigError,
    EmbedCorpusConfig,
    EvaluateConfig,
    InputJobConfig,
    JobConfig,
    SynthConfig,
    TrainConfig,
)
from rayjobs.scan import shards_of

# Seen with the demo's prompts and answers; a real teacher's are of the same order. 85 tokens is what OpenAI bills
# for a small picture and the least for a large one.
PROMPT_TOKENS, TOKENS_PER_PICTURE, COMPLETION_TOKENS = 450, 765, 600
CHARACTERS_SHOWN = 1200


def describe(job: str, config: JobConfig) -> str:
    """The text that --dry-run prints."""
    lines = [
        f"# {job}: effective configuration",
        yaml.safe_dump(config.model_dump(), allow_unicode=True, sort_keys=False),
    ]
    lines += ["# would read", *_DESCRIBED.get(type(config), _describe_input)(config)]
    return "\n".join(lines)


def _describe_input(config: Any) -> list[str]:
    if not isinstance(config, InputJobConfig):
        return ["nothing"]
    shards = shards_of(config.input, pictures=isinstance(config, EmbedCorpusConfig))
    try:
        rows = sum(parquet_file(shard).metadata.num_rows for shard in shards if shard.suffix == ".parquet")
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"input: {first_line(error)}") from None
    return _files(shards) + ([f"{rows:,} rows in Parquet"] if rows else [])


def _describe_training(config: TrainConfig) -> list[str]:
    from mme5core.readers.samples import open_samples
    from rayjobs.train import check

    shards = shards_of(config.input, suffixes=(".parquet",))
    check(config)
    try:
        rows = sum(open_samples(shard).metadata.num_rows for shard in shards)
    except InputError as error:
        raise ConfigError(str(error)) from None
    rows = min(rows, config.limit or rows)
    if config.batch_size > rows:
        raise ConfigError(f"batch_size={config.batch_size} is larger than the data: {rows:,} samples")
    steps = config.num_steps or max(1, int(config.num_epochs * rows / config.batch_size))
    return [*_files(shards), f"{rows:,} samples before any is refused; about {steps:,} steps"]


def _describe_embedding(config: EmbedCorpusConfig) -> list[str]:
    from rayjobs.embed_corpus import checked_width

    lines = _describe_input(config)
    width = checked_width(config)
    return [*lines, f"vectors of width {config.vectors.dim or width:,}"]


def _describe_evaluation(config: EvaluateConfig) -> list[str]:
    folder = Path(config.benchmark)
    lines = []
    for part in ("queries", "candidates"):
        file = folder / f"{part}.parquet"
        if not file.is_file():
            raise ConfigError(f"no benchmark at {config.benchmark!r}: it has no {file.name}")
        lines.append(f"{pq.read_metadata(file).num_rows:,} {part} in {file}")
    return lines


def _describe_synthesis(config: SynthConfig) -> list[str]:
    from mme5core.synthesis.plan import plan_image
    from mme5core.synthesis.prompts import build_prompt
    from rayjobs.synth import plan_settings

    shards = shards_of(config.input, suffixes=(".tar",))
    settings = plan_settings(config)
    ids, num_refused = [], 0
    rows = (row for shard in shards for row in read_rows(shard))
    for row in itertools.islice(rows, config.limit):
        if row.refused is None:
            ids.append(row.id)
        else:
            num_refused += 1
    plans = [plan for image_id in dict.fromkeys(ids) for plan in plan_image(image_id, settings)]
    lines = _files(shards)
    lines.append(f"{len(ids):,} pictures, {num_refused:,} rows without one; {len(plans):,} samples planned")
    counts = Counter((plan.task, plan.modality_combination) for plan in plans)
    lines += [f"  {task:<15} {combination:<6} {count:>8,}" for (task, combination), count in sorted(counts.items())]
    languages = Counter(plan.language for plan in plans)
    lines.append("languages: " + ", ".join(f"{code} {count:,}" for code, count in languages.most_common(12)))
    num_pictures = sum(len(plan.image_ids) for plan in plans)
    prompt_tokens = PROMPT_TOKENS * len(plans) + TOKENS_PER_PICTURE * num_pictures
    completion_tokens = COMPLETION_TOKENS * len(plans)
    lines.append(
        f"cost expected: {len(plans):,} calls, about {prompt_tokens / 1e6:,.2f} M prompt tokens and "
        f"{completion_tokens / 1e6:,.2f} M completion tokens" + _price(config, prompt_tokens, completion_tokens)
    )
    if plans:
        _, user = build_prompt(plans[0], num_negatives=config.num_negatives)
        lines += ["", f"# the first prompt ({plans[0].id})", user[:CHARACTERS_SHOWN]]
    return lines


def _price(config: SynthConfig, prompt_tokens: int, completion_tokens: int) -> str:
    if config.prices.prompt is None or config.prices.completion is None:
        return "; set prices.prompt and prices.completion (USD per million tokens) for the sum in money"
    usd = (prompt_tokens * config.prices.prompt + completion_tokens * config.prices.completion) / 1e6
    return f": about {usd:,.2f} USD"


def _files(shards: list[AnyPath]) -> list[str]:
    size = sum(shard_bytes(shard) for shard in shards)
    return [f"{len(shards):,} files, {size / 1e6:,.1f} MB: {shards[0]}" + (" ..." if len(shards) > 1 else "")]


_DESCRIBED: dict[type[JobConfig], Callable[[Any], list[str]]] = {
    SynthConfig: _describe_synthesis,
    TrainConfig: _describe_training,
    EmbedCorpusConfig: _describe_embedding,
    EvaluateConfig: _describe_evaluation,
}
