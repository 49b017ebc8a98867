"""Training samples from pictures: synth --config mme5 input=laion/ output=samples/ teacher.base_url=URL"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mme5core.errors import first_line
from mme5core.readers import ReadOptions, input_files, input_identity
from mme5core.readers.shards import labels
from mme5core.schemas import HOLDOUT, NEIGHBOURS
from mme5core.storage import AnyPath
from mme5core.synthesis.plan import PairRules, PlanSettings
from mme5core.synthesis.pricing import Price, price_of
from mme5core.synthesis.rates import Usage
from mme5core.types import Rejected
from rayjobs import cli
from rayjobs.answers import AnswerCache, AnswerLog
from rayjobs.batch_worker import AskInBatches, num_with_server
from rayjobs.cluster import Runner, actor_cpus, connected, in_tasks, rows_to_tables
from rayjobs.config import ConfigError, SynthConfig
from rayjobs.contents import number_contents
from rayjobs.gate import start_governor, watched
from rayjobs.output import JobFolder, job_folder
from rayjobs.picture_filters import COLUMNS, PictureKey
from rayjobs.planning import Plan, make_plan, refused_samples
from rayjobs.progress import Progress
from rayjobs.scan import Index, ScanShard, column_tables, files_with, scan, shards_of
from rayjobs.synth_parts import WriteSamples, write_parts
from rayjobs.synth_verbs import export, gallery
from rayjobs.synth_worker import (
    BUDGET_SPENT,
    KEPT,
    PENDING,
    REFUSED,
    Asking,
    AskTeacher,
    Pictures,
    Rules,
    Stop,
    api_key,
    remembered_form,
)

# For the calls that are in flight when the job is told to stop; `ray job stop` kills it after 3 seconds.
GRACE_S, GRACE_OF_SUBMITTED_S = 10.0, 2.0
CALLS_AT_ONCE = 2  # files of the plan that a worker has open: the last calls of one go beside the first of the next


def run(config: SynthConfig) -> cli.Outcome:
    shards = synth_shards(config)
    settings = plan_settings(config)
    check_teacher(config)
    folder = synth_folder(config, shards)
    finished = folder.open()
    if finished:
        return cli.Outcome(finished["counters"], reason="already done")
    answers = folder.work / "answers"
    answers.mkdir(exist_ok=True)
    if config.teacher.cache:
        try:
            Path(config.teacher.cache).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"teacher.cache {config.teacher.cache!r} cannot be a folder: {error.strerror}") from None
    options = ReadOptions(pictures=config.pictures, columns=COLUMNS if needs_columns(config) else ())
    with connected() as ray:
        task = ScanShard(folder.work / "index", PictureKey(config.filters.model_dump()), config.limit, options)
        index = scan(ray, shards, task, label="synth")
        tasks, neighbours = in_tasks(ray), neighbour_files(config)
        plan = make_plan(index, settings, folder.work, neighbours=neighbours, num_workers=config.num_workers, run=tasks)
        pictures = Pictures(plan.shards, tuple(labels(shards)), ReadOptions(pictures=config.pictures))
        stop = _ask_all(ray, config, plan, pictures, answers)
        log = AnswerLog(answers, len(plan), folder.work / "answered")
        return _finish(tasks, folder, config, index, plan, pictures, log, stop)


def synth_shards(config: SynthConfig) -> list[AnyPath]:
    return shards_of(config.input, suffixes=(".tar", ".parquet"), pictures=True)


def synth_folder(config: SynthConfig, shards: Sequence[AnyPath]) -> JobFolder:
    files = input_files(shards)
    read = {"neighbours": neighbour_files(config), "holdout": holdout_files(config)}
    identities = {"input": input_identity(files)} | {
        name: input_identity(input_files(found)) for name, found in read.items() if found is not None
    }
    return job_folder("synth", config, identities, files)


def holdout_files(config: SynthConfig) -> list[AnyPath] | None:
    return None if config.holdout is None else files_with(config.holdout, HOLDOUT, "holdout")


def neighbour_files(config: SynthConfig) -> list[AnyPath] | None:
    return None if config.neighbours is None else files_with(config.neighbours, NEIGHBOURS, "neighbours")


def check_teacher(config: SynthConfig) -> None:
    """
    Raises:
        ConfigError: no endpoint or model, a password in the address, or a budget in money without prices.
    """
    if not config.teacher.base_url or not config.teacher.model:
        missing = "base_url" if not config.teacher.base_url else "model"
        raise ConfigError(f"'teacher.{missing}' is required: an OpenAI-compatible endpoint and a model's name there")
    if not config.teacher.base_url.startswith(("http://", "https://")):
        raise ConfigError(f"'teacher.base_url' must begin with http:// or https://, got {config.teacher.base_url!r}")
    if config.teacher.cache and Path(config.teacher.cache).exists() and not Path(config.teacher.cache).is_dir():
        raise ConfigError(f"teacher.cache {config.teacher.cache!r} is not a folder")
    if "@" in config.teacher.base_url.partition("://")[2].partition("/")[0]:
        raise ConfigError("'teacher.base_url' holds a name or a password: put a key into OPENAI_API_KEY instead")
    if config.budget.usd is not None and price(config) is None:
        raise ConfigError(
            f"'budget.usd' needs 'prices.prompt' and 'prices.completion' (USD per million tokens): nobody knows what "
            f"{config.teacher.model!r} costs"
        )


def price(config: SynthConfig) -> Price | None:
    """What the teacher costs; of the Batch API, where nothing else is said, half."""
    is_batch = config.teacher.batch_size is not None
    return price_of(config.teacher.model, config.prices.prompt, config.prices.completion, batch=is_batch)


def needs_columns(config: SynthConfig) -> bool:
    filters = config.filters
    wanted = (filters.max_punsafe, filters.max_pwatermark, filters.min_similarity)
    return bool(filters.nsfw) or any(value is not None for value in wanted)


def plan_settings(config: SynthConfig) -> PlanSettings:
    """What the recipe says of the plan.

    Raises:
        ConfigError: it cannot be planned so.
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
        raise ConfigError(str(error)) from None


def _ask_all(ray: Any, config: SynthConfig, plan: Plan, pictures: Pictures, answers: Path) -> Stop | None:
    """Ask for every planned sample that has no answer yet; answers go to the log as they come."""
    work = answers.parent
    log = AnswerLog(answers, len(plan), work / "answered")
    num_done = log.num_done
    starts = plan.starts
    items = [{"file": n} for n in range(plan.num_files) if (log.places[starts[n] : starts[n + 1]] < 0).any()]
    if not items:
        return None
    num_workers = min(config.num_workers, len(items))
    num_sent = num_with_server(work)
    in_batches = config.teacher.batch_size is not None or num_sent > 0
    worker = AskInBatches if in_batches else AskTeacher
    files_at_once = max(CALLS_AT_ONCE, config.teacher.concurrency) if in_batches else CALLS_AT_ONCE
    teacher = config.teacher.model_dump(exclude={"requests_per_minute", "tokens_per_minute", "cache"})
    governor = start_governor(
        ray,
        answers,
        log.used_by_worker,
        max_in_flight=num_workers * config.teacher.concurrency * (config.teacher.batch_size or 1) + num_sent,
        budget_calls=config.budget.calls,
        budget_usd=config.budget.usd,
        # Batches have limits of their own, and the server keeps them.
        requests_per_minute=None if config.teacher.batch_size else config.teacher.requests_per_minute,
        tokens_per_minute=None if config.teacher.batch_size else config.teacher.tokens_per_minute,
    )
    mode, limit = remembered_form(work, config.teacher.base_url, config.teacher.model)
    asking = Asking(
        teacher,
        plan,
        pictures,
        Rules(config.num_negatives, config.min_self_evaluation),
        price(config),
        answers,
        config.teacher.cache,
        api_key(),
        mode,
        limit,
        has_answer=any(used.num_answered for used in log.used_by_worker.values()),
    )
    told = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        worker,
        fn_constructor_args=(asking, governor),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_workers, max_concurrent_calls_per_actor=files_at_once),
        num_cpus=actor_cpus(ray, num_workers, 0.5),
    )
    stop: Stop | None = None
    grace_s = GRACE_OF_SUBMITTED_S if os.environ.get("RAY_ADDRESS") else GRACE_S
    with (
        Progress("synth", len(plan), "samples", done=num_done) as progress,
        cli.stopping_softly(0.0 if in_batches else grace_s) as is_to_stop,  # nobody waits for a batch
    ):

        def show(state: dict[str, Any]) -> None:
            counts = state["counts"]
            extra = f"{counts[REFUSED]:,} refused, {counts[PENDING]:,} pending"
            extra += f", {state['usd']:,.2f} USD" if state["usd"] else ""
            progress.update(num_done + counts[KEPT] + counts[REFUSED], extra)
            if is_to_stop.is_set():
                governor.halt.remote()  # what is in flight is paid for

        with watched(ray, governor, show):
            for row in (row for table in rows_to_tables(told) for row in table.to_pylist()):
                found = Stop(row["stop_code"], row["stop_reason"])
                if found.code and (stop is None or stop.code == cli.RESUMABLE != found.code):
                    stop = found
                if stop and stop.code != cli.RESUMABLE:
                    governor.halt.remote()  # the calls that the other workers have out are paid for: they may end
    if is_to_stop.is_set() and (stop is None or stop.reason == BUDGET_SPENT):
        return Stop(cli.RESUMABLE, cli.STOPPED)
    return stop


def _finish(
    tasks: Runner,
    folder: JobFolder,
    config: SynthConfig,
    index: Index,
    plan: Plan,
    pictures: Pictures,
    log: AnswerLog,
    stop: Stop | None,
) -> cli.Outcome:
    """Write what there is as parts, quarantine and manifest; what has no answer is pending."""
    rules = Rules(config.num_negatives, config.min_self_evaluation)
    task = WriteSamples(plan, log.reader(), pictures, rules, config.near_duplicate, folder.work / "parts")
    written = write_parts(task, log, folder.path, tasks)
    totals = Counter[str]()
    for part in written:
        totals.update({name: part.told[name] for name in ("kept", "pending", "repaired")})
    contents = number_contents(index, folder.work)

    def refused() -> Iterator[Rejected]:
        for rejected in refused_samples(index, contents, config.samples_per_image):
            totals["without_picture"] += 1
            yield rejected
        for part in written:
            for row in pq.read_table(part.refusals).to_pylist():
                yield Rejected(**row)

    counts = folder.write_quarantine(refused())
    folder.take_parts({part.entry["name"]: part.file for part in written})
    usage = log.usage
    extra: dict[str, Any] = {
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "repaired": totals["repaired"],
    }
    if price(config) is not None or usage.usd:
        extra["usd"] = usage.usd
    if config.teacher.cache:
        try:
            AnswerCache.keep(log.files, Path(config.teacher.cache))
        except OSError as error:  # the samples are there all the same
            print(f"teacher.cache: this run's answers are not all kept in it ({first_line(error)})", file=sys.stderr)
    counters = folder.finish(
        unit="planned samples",
        num_read=len(plan) + totals["without_picture"],
        num_kept=totals["kept"],
        refused=counts,
        pending=totals["pending"],
        extra_counters=extra,
        described=[part.entry for part in written],
        details={
            "plan": plan.counts | {"neighbour_pairs": plan.num_pairs, "not_drawn": plan.num_not_drawn},
            "answer_form": remembered_form(folder.work, config.teacher.base_url, config.teacher.model)[0],
        },
    )
    if totals["pending"]:
        stop = stop or Stop(cli.RESUMABLE, f"{totals['pending']:,} samples have no answer yet; run the same again")
        reason = _budget_line(config, usage) if stop.reason == BUDGET_SPENT else stop.reason
        return cli.Outcome(counters, stop.code, reason)
    if not totals["kept"]:
        return cli.Outcome(counters, reason=f"done, and nothing was kept: {config.output}/_quarantine says why")
    return cli.Outcome(counters)


def _budget_line(config: SynthConfig, usage: Usage) -> str:
    spent = []
    if config.budget.calls is not None and usage.calls >= config.budget.calls:
        spent.append(f"{usage.calls:,} calls of budget.calls={config.budget.calls}")
    if config.budget.usd is not None:
        spent.append(f"{usage.usd:,.2f} USD of budget.usd={config.budget.usd:g}")
    return f"the budget is spent ({', '.join(spent)}); raise it to go on"


def main() -> None:
    cli.main("synth", {"": run, "gallery": gallery, "export": export})


if __name__ == "__main__":
    main()
