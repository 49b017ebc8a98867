"""What a job would do: its effective configuration, what it would read, and what that would cost."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from mme5core.errors import first_line
from mme5core.images import BadImage, picture_size
from mme5core.languages import language_name
from mme5core.readers import CorpusRow, InputError, ReadOptions, read_rows
from mme5core.readers.shards import labels, shard_bytes
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath, parquet_file
from mme5core.synthesis.plan import Neighbour, PlannedSample, plan_image
from mme5core.synthesis.rates import Usage
from rayjobs.config import (
    ConfigError,
    EmbedCorpusConfig,
    EvaluateConfig,
    JobConfig,
    SynthConfig,
    TrainConfig,
)
from rayjobs.output import JobFolder, job_folder
from rayjobs.scan import column_tables, one_side, shards_of

DRY_ROWS = 20_000  # of a larger input the first so many rows stand for all
PICTURES_KEPT, PROMPTS_SHOWN = 200, 3


def describe(job: str, config: JobConfig) -> str:
    """The text that --dry-run prints.

    Raises:
        ConfigError: the job would be refused as it is.
    """
    lines = [
        f"# {job}: effective configuration",
        yaml.safe_dump(config.model_dump(), allow_unicode=True, sort_keys=False),
    ]
    lines += ["# would read", *_DESCRIBED.get(type(config), _describe_nothing)(config)]
    return "\n".join(lines)


def _describe_nothing(config: JobConfig) -> list[str]:
    return ["nothing"]


def _describe_output(folder: JobFolder) -> list[str]:
    return [f"output {folder.path}: {folder.look()}"] if folder.run.config["output"] else []


def _describe_training(config: TrainConfig) -> list[str]:
    from mme5core.sample_readers import open_samples
    from rayjobs.train import check, sources_of, train_folder

    sources = sources_of(config)
    shards = [shard for found in sources.values() for shard in found]
    check(config)
    try:
        rows = sum(open_samples(shard).metadata.num_rows for shard in shards)
    except InputError as error:
        raise ConfigError(str(error)) from None
    rows = min(rows, config.limit or rows)
    if config.batch_size > rows:
        raise ConfigError(f"batch_size={config.batch_size} is larger than the data: {rows:,} samples")
    steps = config.num_steps or max(1, int(config.num_epochs * rows / config.batch_size))
    return [
        *_files(shards),
        f"{rows:,} samples before any is refused; about {steps:,} steps",
        *_describe_output(train_folder(config, sources)),
    ]


def _describe_embedding(config: EmbedCorpusConfig) -> list[str]:
    from rayjobs.embed_corpus import checked_width, embed_folder

    shards = shards_of(config.input, pictures=True)
    try:
        rows = sum(parquet_file(shard).metadata.num_rows for shard in shards if shard.suffix == ".parquet")
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"input: {first_line(error)}") from None
    lines = _files(shards) + ([f"{rows:,} rows in Parquet"] if rows else [])
    width = checked_width(config)
    lines.append(f"vectors of width {config.vectors.dim or width:,}")
    return lines + _describe_output(embed_folder(config, one_side(shards, config.side)))


def _describe_evaluation(config: EvaluateConfig) -> list[str]:
    from rayjobs.evaluate import identities

    folder = job_folder("evaluate", config, identities(config))
    benchmark = Path(config.benchmark)
    files = {part: benchmark / f"{part}.parquet" for part in ("queries", "candidates")}
    lines = [f"{pq.read_metadata(file).num_rows:,} {part} in {file}" for part, file in files.items()]
    return lines + _describe_output(folder)


def _describe_synthesis(config: SynthConfig) -> list[str]:
    """The plan's table, three whole prompts, and the cost to expect: of all, or reckoned from the first rows."""
    from mme5core.synthesis.pricing import expected_tokens
    from mme5core.synthesis.prompts import build_prompt
    from rayjobs.picture_filters import COLUMNS, PictureKey
    from rayjobs.planning import what_is_not_drawn
    from rayjobs.synth import needs_columns, plan_settings, synth_folder, synth_shards

    shards = synth_shards(config)
    folder = synth_folder(config, shards)
    settings = plan_settings(config)
    key_of = PictureKey(config.filters.model_dump())
    options = ReadOptions(pictures=config.pictures, columns=COLUMNS if needs_columns(config) else ())
    sizes: dict[str, tuple[int, int]] = {}
    shown: dict[str, bytes] = {}
    keys: set[bytes] = set()
    refused: Counter[str] = Counter()
    rows = _rows_of(shards, options)
    num_rows = num_bytes = 0
    for row in islice(rows, min(config.limit or DRY_ROWS, DRY_ROWS)):
        num_rows += 1
        num_bytes += len(row.image or b"")
        try:
            key = key_of(row) if row.refused is None else b""
        except BadImage as error:
            refused[error.reason] += 1
            continue
        if row.refused is not None or key in keys or row.id in sizes:
            refused[row.refused.reason if row.refused else "duplicate_image" if key in keys else "duplicate_id"] += 1
            continue
        keys.add(key)
        sizes[row.id] = picture_size(row.image)
        if len(shown) < PICTURES_KEPT:
            shown[row.id] = row.image or b""
    is_all = not (num_rows == DRY_ROWS and config.limit != DRY_ROWS and next(rows, None) is not None)
    if not num_rows:
        raise ConfigError(f"no rows in the input ({', '.join(path.name for path in shards[:3])})")
    near = _neighbours_of(config, sizes, is_all=is_all)
    plans = [plan for image_id in sizes for plan in plan_image(image_id, settings, near.get(image_id, ()))]
    lines, scale = [*_files(shards), *_describe_output(folder)], 1.0
    lines += _would_refuse(config)
    if config.neighbours and sizes and not near:
        lines.append("neighbours: none of its pairs is of two pictures of the input: is it of another corpus?")
    if not is_all:
        # Pictures are nearly all of the input's bytes; a limit above what was read is known to the row.
        scale = sum(map(shard_bytes, shards)) / max(1, num_bytes)
        scale = min(scale, config.limit / num_rows) if config.limit else scale
        lines.append(f"reckoned from the first {num_rows:,} rows, about {100 / scale:.2g} % of the input:")
    lines.append(f"{len(sizes) * scale:,.0f} pictures; {len(plans) * scale:,.0f} samples planned")
    if refused:
        lines.append(
            "pictures refused: " + ", ".join(f"{name} {count * scale:,.0f}" for name, count in refused.most_common())
        )
    num_not_drawn = scale * (len(sizes) * config.samples_per_image - len(plans))
    try:
        lines += what_is_not_drawn(settings, num_not_drawn, len(plans), has_neighbours=config.neighbours is not None)
    except ConfigError as error:
        if is_all:
            raise
        lines.append(f"of these rows {error}")
    lines += ["", *_plan_table(plans, scale), ""]
    prompt_tokens = completion_tokens = 0
    for plan in plans:
        _, user = build_prompt(plan, num_negatives=config.num_negatives)
        # A neighbour beyond the rows that were read is as large as its query.
        own = sizes[plan.image_ids[0]] if plan.image_ids[0] in sizes else next(iter(sizes.values()))
        found = expected_tokens(user, [sizes.get(shown_id, own) for shown_id in plan.image_ids], config.teacher.model)
        prompt_tokens, completion_tokens = prompt_tokens + found[0], completion_tokens + found[1]
    usage, num_sent = Usage(), 0
    if config.output and (earlier := _earlier(folder)):
        num_pending, num_sent, usage = earlier
        spent = f", {usage.usd:,.2f} USD" if usage.usd else ""
        waiting = f", and {num_sent:,} are with the server in batches" if num_sent else ""
        lines.append(
            f"an earlier run has spent {usage.calls:,} calls{spent}{waiting}; what follows is for what is left"
        )
        scale = num_pending / max(1, len(plans))
    tokens = prompt_tokens * scale, completion_tokens * scale
    lines.append(_cost(config, len(plans) * scale, *tokens))
    lines += _against_budget(config, len(plans) * scale, tokens, usage, num_sent)
    return lines + _three_prompts(config, plans, shown)


def _would_refuse(config: SynthConfig) -> list[str]:
    """What of the teacher's settings a run would not begin with; nobody has to know them yet."""
    from rayjobs.synth import check_teacher
    from rayjobs.synth_worker import api_key

    try:
        check_teacher(config)
    except ConfigError as error:
        return [f"a run would refuse this: {error}"]
    if config.teacher.base_url.startswith("https://") and not api_key():
        return ["OPENAI_API_KEY is not set"]
    return []


def _earlier(folder: JobFolder) -> tuple[int, int, Usage] | None:
    """Of a synthesis that was begun: how many samples are left to ask for, how many are with the server in batches, and
    what all requests took.
    """
    from rayjobs.answers import so_far
    from rayjobs.batch_worker import num_with_server
    from rayjobs.planning import num_planned

    if not folder.is_begun():
        return None
    if (planned := num_planned(folder.work)) is not None:
        num_settled, usage = so_far(folder.work / "answers")
        num_sent = num_with_server(folder.work)
        return max(0, planned - num_settled - num_sent), num_sent, usage
    counters = folder.counters()
    if not counters:
        return None
    return counters["pending"], 0, Usage(calls=counters["calls"], usd=counters.get("usd", 0.0))


def _against_budget(
    config: SynthConfig, num_calls: float, tokens: tuple[float, float], used: Usage, num_sent: int
) -> list[str]:
    """Whether the budget is enough, and for how many calls beside those that are with the server."""
    from rayjobs.synth import price

    allowed: dict[str, float] = {}
    if config.budget.calls is not None:
        allowed[f"budget.calls={config.budget.calls}"] = config.budget.calls - used.calls - num_sent
    known = price(config)
    if config.budget.usd is not None and known is not None and num_calls:
        per_call = known.of(*tokens) / num_calls
        allowed[f"budget.usd={config.budget.usd:g}"] = (config.budget.usd - used.usd) / max(per_call, 1e-12) - num_sent
    lines = []
    for name, count in allowed.items():
        if num_calls and count <= 0:
            lines.append(f"{name} is spent: a run would ask for nothing")
        elif count < num_calls:
            lines.append(
                f"{name} is enough for about {count:,.0f} of these calls; a run stops there until it is raised"
            )
    return lines


def _rows_of(shards: list[AnyPath], options: ReadOptions) -> Iterator[CorpusRow]:
    for shard, label in zip(shards, labels(shards), strict=True):
        yield from read_rows(shard, replace(options, label=label))


def _neighbours_of(config: SynthConfig, image_ids: Collection[str], *, is_all: bool) -> dict[str, list[Neighbour]]:
    """The neighbours of these pictures, nearest first; where these are all that there are, among them."""
    from rayjobs.synth import neighbour_files

    ids = pa.array(image_ids, pa.string())
    near = [NEIGHBOURS.empty_table()]
    files = neighbour_files(config) or ()
    for table in chain.from_iterable(column_tables(file, NEIGHBOURS, "neighbours") for file in files):
        chosen = table.filter(pc.is_in(table["query_id"], ids))
        near.append(chosen.filter(pc.is_in(chosen["candidate_id"], ids)) if is_all else chosen)
    found: dict[str, list[Neighbour]] = defaultdict(list)
    for row in pa.concat_tables(near).sort_by([("rank", "ascending"), ("source", "ascending")]).to_pylist():
        found[row["query_id"]].append(Neighbour(row["candidate_id"], row["score"] or 0.0, row["source"] or ""))
    return found


def _plan_table(plans: Sequence[PlannedSample], scale: float) -> list[str]:
    """Languages down, task and modality combination across."""
    counts = Counter((plan.language, f"{plan.task[:8]} {plan.modality_combination}") for plan in plans)
    kinds = sorted({kind for _, kind in counts})
    by_language = Counter(plan.language for plan in plans)
    widths = [max(len(kind), 7) for kind in kinds]
    head = f"{'language':<26}{'all':>9}  " + "  ".join(
        f"{kind:>{width}}" for kind, width in zip(kinds, widths, strict=True)
    )
    lines = [head]
    for name, total, of_kind in [
        ("all", len(plans), lambda kind: sum(counts[code, kind] for code in by_language)),
        *(
            (language_name(code), count, lambda kind, code=code: counts[code, kind])
            for code, count in by_language.most_common()
        ),
    ]:
        cells = (f"{of_kind(kind) * scale:>{width},.0f}" for kind, width in zip(kinds, widths, strict=True))
        lines.append(f"{name:<26}{total * scale:>9,.0f}  " + "  ".join(cells))
    return lines


def _cost(config: SynthConfig, num_calls: float, prompt_tokens: float, completion_tokens: float) -> str:
    from rayjobs.synth import price

    line = (
        f"cost expected: {num_calls:,.0f} calls, about {prompt_tokens / 1e6:,.2f} M prompt tokens and "
        f"{completion_tokens / 1e6:,.2f} M completion tokens"
    )
    known = price(config)
    if known is None:
        return (
            f"{line}; nobody knows what {config.teacher.model or 'the model'!r} costs: set prices.prompt and "
            "prices.completion (USD per million tokens)"
        )
    return (
        f"{line}: about {known.of(prompt_tokens, completion_tokens):,.2f} USD at {known.prompt:g} and "
        f"{known.completion:g} USD per million"
    )


def _three_prompts(config: SynthConfig, plans: Sequence[PlannedSample], shown: Mapping[str, bytes]) -> list[str]:
    """Whole prompts of three kinds, and the page that shows their pictures."""
    from mme5core.synthesis.gallery import prompt_page
    from mme5core.synthesis.prompts import build_prompt

    with_pictures = [plan for plan in plans if all(image_id in shown for image_id in plan.image_ids)]
    by_kind = {(plan.task, plan.modality_combination): plan for plan in reversed(with_pictures)}
    chosen = sorted(by_kind.values(), key=lambda plan: -len(plan.image_ids))[:1] + list(by_kind.values())
    prompts = []
    for plan in list(dict.fromkeys(chosen))[:PROMPTS_SHOWN]:
        system, user = build_prompt(plan, num_negatives=config.num_negatives)
        prompts.append((plan, system, user, [shown[image_id] for image_id in plan.image_ids]))
    lines = []
    for number, (plan, system, user, _) in enumerate(prompts, start=1):
        lines += ["", f"# prompt {number} of {len(prompts)} ({plan.id})", system, "", user]
    if prompts:
        with tempfile.NamedTemporaryFile("w", prefix="mme5-prompts-", suffix=".html", delete=False) as file:
            file.write(prompt_page("Prompts", prompts))
        lines += ["", f"these prompts with their pictures: {file.name}"]
    return lines


def _files(shards: list[AnyPath]) -> list[str]:
    size = sum(shard_bytes(shard) for shard in shards)
    return [
        f"{len(shards):,} file{'s' * (len(shards) > 1)}, {size / 1e6:,.1f} MB: {shards[0]}"
        + (" ..." if len(shards) > 1 else "")
    ]


_DESCRIBED: dict[type[JobConfig], Callable[[Any], list[str]]] = {
    SynthConfig: _describe_synthesis,
    TrainConfig: _describe_training,
    EmbedCorpusConfig: _describe_embedding,
    EvaluateConfig: _describe_evaluation,
}
