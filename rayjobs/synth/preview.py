"""What `synth` would do: the plan's table, three whole prompts, and the cost to expect."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc

from mme5core.asking.answer_log import Survey
from mme5core.asking.batch_record import num_with_server
from mme5core.asking.pricing import prompt_tokens
from mme5core.asking.rates import Usage
from mme5core.corpus.picture_filters import PictureKey
from mme5core.errors import InputError
from mme5core.images import BadImage, picture_size
from mme5core.languages import language_name
from mme5core.readers import CorpusRow, ReadOptions, read_rows
from mme5core.readers.shards import labels, shard_bytes
from mme5core.schemas import NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.synthesis.gallery import prompt_page
from mme5core.synthesis.plan import Neighbour, PlannedSample, PlanSettings, plan_image
from mme5core.synthesis.planning import num_planned, what_is_not_drawn
from mme5core.synthesis.prompts import build_prompt, expected_completion_tokens, schema_in_words
from mme5core.tables import column_tables
from rayjobs.asking.ask import api_key
from rayjobs.folder import JobFolder
from rayjobs.preview_lines import file_lines, output_lines
from rayjobs.synth.config import SynthConfig
from rayjobs.synth.inputs import corpus_shards, neighbour_files, plan_settings, read_options, synth_folder

DRY_ROWS = 20_000  # of a larger input the first so many rows stand for all
PICTURES_KEPT, PROMPTS_SHOWN = 200, 3


@dataclass(slots=True)
class FirstRows:
    """The first rows of a corpus, read as a run would read them.

    Args:
        sizes: width and height of each usable picture by its id.
        shown: encoded bytes of the first of them.
        refused: rows by the reason for which they would be refused.
        is_all: whether the corpus has no more rows, or none that the limit lets through.
    """

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    shown: dict[str, bytes] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    num_bytes: int = 0
    is_all: bool = True

    @classmethod
    def read(cls, config: SynthConfig, shards: Sequence[AnyPath]) -> FirstRows:
        """
        Raises:
            InputError: there is not one row.
        """
        first, key_of, keys = cls(), PictureKey(config.filters), set[bytes]()
        rows = _rows_of(shards, config.input, read_options(config))
        for row in islice(rows, min(config.limit or DRY_ROWS, DRY_ROWS)):
            first.num_rows += 1
            first.num_bytes += row.num_bytes
            reason = first._check(row, key_of, keys)
            if reason:
                first.refused[reason] += 1
        first.is_all = not (first.num_rows == DRY_ROWS and config.limit != DRY_ROWS and next(rows, None) is not None)
        if not first.num_rows:
            raise InputError(f"no rows in the input ({', '.join(path.name for path in shards[:3])})")
        return first

    def _check(self, row: CorpusRow, key_of: PictureKey, keys: set[bytes]) -> str:
        """Take a usable row; else the reason why it is refused."""
        if row.refused is not None:
            return row.refused.reason
        try:
            key = key_of(row)
        except BadImage as error:
            return error.reason
        if key in keys:
            return "duplicate_image"
        if row.id in self.sizes:
            return "duplicate_id"
        keys.add(key)
        assert isinstance(row.image, bytes), "the key was made of it"
        self.sizes[row.id] = picture_size(row.image)
        if len(self.shown) < PICTURES_KEPT:
            self.shown[row.id] = row.image
        return ""

    def scale(self, shards: Sequence[AnyPath], limit: int | None) -> float:
        """How many times these rows the whole corpus has, up to the limit."""
        if self.is_all:
            return 1.0
        # Pictures are nearly all of the input's bytes; a limit above what was read is known to the row.
        scale = sum(map(shard_bytes, shards)) / max(1, self.num_bytes)
        return min(scale, limit / self.num_rows) if limit else scale


@dataclass(frozen=True, slots=True)
class Expected:
    """What is left to ask for, and what that should take; `num_measured` answers say so, else it is a guess."""

    calls: float
    prompt_tokens: float
    completion_tokens: float
    num_measured: int = 0

    def by(self, usage: Usage) -> Expected:
        """The same calls at the mean of what an earlier run has paid for an answer, failed calls included."""
        if not usage.num_answered or not usage.tokens:
            return self
        factor = self.calls / usage.num_answered
        return Expected(self.calls, factor * usage.prompt_tokens, factor * usage.completion_tokens, usage.num_answered)


def preview(config: SynthConfig) -> list[str]:
    """
    Raises:
        InputError: a run would refuse the configuration or the input.
    """
    shards = corpus_shards(config)
    folder = synth_folder(config, shards)
    settings = plan_settings(config)
    first = FirstRows.read(config, shards)
    near = _neighbours_of(config, first.sizes, is_all=first.is_all)
    plans = [plan for image_id in first.sizes for plan in plan_image(image_id, settings, near.get(image_id, ()))]
    scale = first.scale(shards, config.limit)
    lines = [*file_lines(shards), *output_lines(config.output, folder), *_would_refuse(config)]
    if config.neighbours and first.sizes and not near:
        lines.append("neighbours: none of its pairs is of two pictures of the input: is it of another corpus?")
    if not first.is_all:
        lines.append(f"reckoned from the first {first.num_rows:,} rows, about {100 / scale:.2g} % of the input:")
    lines += _plan_lines(config, settings, first, plans, scale)
    if config.output and (earlier := Earlier.of(folder)):
        lines.append(earlier.line())
        scale = earlier.num_left / max(1, len(plans))
    else:
        earlier = Earlier()
    expected = _expected(config, plans, first.sizes, scale).by(earlier.usage)
    lines += [_cost_line(config, expected), *_budget_lines(config, expected, earlier)]
    return lines + _prompt_lines(config, plans, first.shown)


def _plan_lines(
    config: SynthConfig,
    settings: PlanSettings,
    first: FirstRows,
    plans: Sequence[PlannedSample],
    scale: float,
) -> list[str]:
    lines = [f"{len(first.sizes) * scale:,.0f} pictures; {len(plans) * scale:,.0f} samples planned"]
    if first.refused:
        reasons = ", ".join(f"{reason} {count * scale:,.0f}" for reason, count in first.refused.most_common())
        lines.append(f"pictures refused: {reasons}")
    num_not_drawn = scale * (len(first.sizes) * config.samples_per_image - len(plans))
    try:
        lines += what_is_not_drawn(settings, num_not_drawn, len(plans), has_neighbours=config.neighbours is not None)
    except InputError as error:
        if first.is_all:
            raise
        lines.append(f"of these rows {error}")
    return [*lines, "", *_plan_table(plans, scale), ""]


def _expected(
    config: SynthConfig, plans: Sequence[PlannedSample], sizes: Mapping[str, tuple[int, int]], scale: float
) -> Expected:
    num_prompt = num_completion = 0
    most = config.teacher.max_picture_side
    for plan in plans:
        system, user = build_prompt(plan, num_negatives=config.num_negatives)
        # A neighbour beyond the rows that were read is as large as its query.
        own = sizes[plan.image_ids[0]] if plan.image_ids[0] in sizes else next(iter(sizes.values()))
        shown = [_as_sent(sizes.get(image_id, own), most) for image_id in plan.image_ids]
        num_prompt += prompt_tokens(system + user + schema_in_words(plan), shown, config.teacher.model)
        num_completion += expected_completion_tokens(len(plan.image_ids))
    return Expected(len(plans) * scale, num_prompt * scale, num_completion * scale)


def _as_sent(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """The size of a picture that is scaled down to a longest side."""
    scale = 1.0 if max_side is None else min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _would_refuse(config: SynthConfig) -> list[str]:
    """What of the teacher's settings a run would not begin with; they need not be known yet."""
    try:
        config.teacher.check("teacher", config.prices, config.budget)
    except InputError as error:
        return [f"a run would refuse this: {error}"]
    if config.teacher.base_url.startswith("https://") and not api_key():
        return ["OPENAI_API_KEY is not set"]
    return []


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier run of the folder has left: samples to ask for, samples with the server, and what it spent."""

    num_left: int = 0
    num_with_server: int = 0
    usage: Usage = field(default_factory=Usage)

    @classmethod
    def of(cls, folder: JobFolder) -> Earlier | None:
        if not folder.is_begun():
            return None
        if (num_samples := num_planned(folder.work)) is not None:
            survey = Survey.of_folder(folder.work / "answers")
            num_sent = num_with_server(folder.work)
            left = max(0, num_samples - int(survey.num_settled.sum()) - num_sent)
            return cls(left, num_sent, survey.usage)
        counters = folder.counters()
        if not counters:
            return None
        return cls(counters["pending"], 0, Usage(calls=counters["calls"], usd=counters.get("usd", 0.0)))

    def line(self) -> str:
        spent = f", {self.usage.usd:,.2f} USD" if self.usage.usd else ""
        waiting = f", and {self.num_with_server:,} are with the server in batches" if self.num_with_server else ""
        return f"an earlier run has spent {self.usage.calls:,} calls{spent}{waiting}; what follows is for what is left"


def _budget_lines(config: SynthConfig, expected: Expected, earlier: Earlier) -> list[str]:
    """Whether the budget is enough, and for how many calls beside those that are with the server."""
    used, num_sent = earlier.usage, earlier.num_with_server
    allowed: dict[str, float] = {}
    if config.budget.calls is not None:
        allowed[f"budget.calls={config.budget.calls}"] = config.budget.calls - used.calls - num_sent
    price = config.teacher.price(config.prices)
    if config.budget.usd is not None and price is not None and expected.calls:
        per_call = price.of(expected.prompt_tokens, expected.completion_tokens) / expected.calls
        allowed[f"budget.usd={config.budget.usd:g}"] = (config.budget.usd - used.usd) / max(per_call, 1e-12) - num_sent
    lines = []
    for name, count in allowed.items():
        if expected.calls and count <= 0:
            lines.append(f"{name} is spent: a run would ask for nothing")
        elif count < expected.calls:
            lines.append(
                f"{name} is enough for about {count:,.0f} of these calls; a run stops there until it is raised"
            )
    return lines


def _cost_line(config: SynthConfig, expected: Expected) -> str:
    line = (
        f"cost expected: {expected.calls:,.0f} calls, about {expected.prompt_tokens / 1e6:,.2f} M prompt tokens and "
        f"{expected.completion_tokens / 1e6:,.2f} M completion tokens"
    )
    if expected.num_measured:
        line += f" (by the mean of {expected.num_measured:,} answers so far)"
    price = config.teacher.price(config.prices)
    if price is None:
        return (
            f"{line}; the price of {config.teacher.model or 'the model'!r} is not known: set prices.prompt and "
            "prices.completion (USD per million tokens)"
        )
    usd = price.of(expected.prompt_tokens, expected.completion_tokens)
    return f"{line}: about {usd:,.2f} USD at {price.prompt:g} and {price.completion:g} USD per million"


def _rows_of(shards: Sequence[AnyPath], inputs: Sequence[str], options: ReadOptions) -> Iterator[CorpusRow]:
    for shard, label in zip(shards, labels(shards, inputs), strict=True):
        yield from read_rows(shard, replace(options, label=label))


def _neighbours_of(config: SynthConfig, image_ids: Collection[str], *, is_all: bool) -> dict[str, list[Neighbour]]:
    """The neighbours of these pictures, nearest first; where these are all that there are, among them."""
    ids = pa.array(image_ids, pa.string())
    near = [NEIGHBOURS.empty_table()]
    files = neighbour_files(config) or ()
    for table in chain.from_iterable(column_tables(file, NEIGHBOURS, "neighbours") for file in files):
        chosen = table.filter(pc.is_in(table["query_id"], ids))
        near.append(chosen.filter(pc.is_in(chosen["candidate_id"], ids)) if is_all else chosen)
    neighbours: dict[str, list[Neighbour]] = defaultdict(list)
    for row in pa.concat_tables(near).sort_by([("rank", "ascending"), ("source", "ascending")]).to_pylist():
        neighbours[row["query_id"]].append(Neighbour(row["candidate_id"], row["score"] or 0.0, row["source"] or ""))
    return neighbours


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


def _prompt_lines(config: SynthConfig, plans: Sequence[PlannedSample], shown: Mapping[str, bytes]) -> list[str]:
    """Whole prompts of three kinds, and the page that shows their pictures."""
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
