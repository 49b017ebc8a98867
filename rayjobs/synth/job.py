"""Training samples from pictures: synth --config mme5 input=laion/ output=samples/ teacher.base_url=URL"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mme5core.asking.answer_cache import AnswerCache
from mme5core.asking.answer_log import Survey, log_files
from mme5core.asking.batch_record import num_with_server
from mme5core.asking.known_form import remembered_form
from mme5core.asking.patience import Stop
from mme5core.asking.rates import Usage
from mme5core.asking.worker import Asking
from mme5core.corpus.contents import number_contents
from mme5core.corpus.index import Index
from mme5core.corpus.picture_filters import PictureKey
from mme5core.corpus.scan import ScanShard, scan
from mme5core.corpus.stored_pictures import StoredPictures
from mme5core.errors import InputError, first_line
from mme5core.parts import Part, PartFiles
from mme5core.progress import Progress
from mme5core.readers import ReadOptions
from mme5core.readers.shards import labels
from mme5core.synthesis.planning import Plan, make_plan, refused_samples
from mme5core.synthesis.question import Synthesis
from mme5core.synthesis.sample_parts import WriteSamples, part_items
from mme5core.types import Rejected
from rayjobs.asking import ask_all
from rayjobs.command.outcome import RESUMABLE, Outcome
from rayjobs.folder import JobFolder
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.tasks import run_on_ray
from rayjobs.synth.config import SynthConfig
from rayjobs.synth.inputs import corpus_shards, neighbour_files, plan_settings, read_options, synth_folder


def run(config: SynthConfig) -> Outcome:
    shards = corpus_shards(config)
    settings = plan_settings(config)
    config.teacher.check("teacher", config.prices, config.budget)
    with synth_folder(config, shards) as folder:
        finished = folder.open()
        if finished:
            return Outcome(finished["counters"], reason="already done")
        (folder.work / "answers").mkdir(exist_ok=True)
        _make_cache(config)
        with connected():
            task = ScanShard(folder.work / "index", PictureKey(config.filters), config.limit, read_options(config))
            index = scan(shards, task, job="synth", run=run_on_ray)
            plan = make_plan(
                index,
                settings,
                folder.work,
                neighbours=neighbour_files(config),
                num_workers=config.num_workers,
                run=run_on_ray,
            )
            pictures = StoredPictures(plan.shards, tuple(labels(shards)), ReadOptions(pictures=config.pictures))
            question = Synthesis(pictures, config.num_negatives, config.min_self_evaluation)
            stop = _ask(config, folder, plan, question)
            return _finish(folder, config, index, plan, question, stop)


def _make_cache(config: SynthConfig) -> None:
    if config.teacher.cache:
        try:
            Path(config.teacher.cache).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"teacher.cache {config.teacher.cache!r} cannot be a folder: {error.strerror}") from None


def _ask(config: SynthConfig, folder: JobFolder, plan: Plan, question: Synthesis) -> Stop | None:
    """Ask for every planned sample that has no answer yet; answers go to the log as they come."""
    work = folder.work
    survey = Survey.of(work / "answers", plan.num_files, run_on_ray)
    asking = Asking(
        config.teacher,
        "teacher",
        question,
        plan,
        work,
        config.teacher.price(config.prices),
        remembered_form(work, config.teacher.base_url, config.teacher.model),
        has_answer=survey.usage.num_answered > 0,
        in_batches=config.teacher.calls_per_batch is not None or num_with_server(work) > 0,
        owner=folder.owner,
    )
    return ask_all(asking, survey, budget=config.budget, num_workers=config.num_workers, job="synth", unit="samples")


def _finish(
    folder: JobFolder, config: SynthConfig, index: Index, plan: Plan, question: Synthesis, stop: Stop | None
) -> Outcome:
    """Write what there is as parts, quarantine and manifest; what has no answer is pending."""
    folder.check_owner()
    log = folder.work / "answers"
    survey = Survey.of(log, plan.num_files, run_on_ray)
    parts = _write_parts(folder, config, plan, question, survey)
    totals = Counter[str]()
    for part in parts:
        totals.update({name: part.report[name] for name in ("kept", "pending", "repaired")})
    contents = number_contents(index, folder.work)

    def refused() -> Iterator[Rejected]:
        for rejected in refused_samples(index, contents, config.samples_per_image):
            totals["without_picture"] += 1
            yield rejected
        for part in parts:
            yield from part.refused()

    counts = folder.write_quarantine(refused())
    folder.take_parts({part.entry["name"]: part.file for part in parts})
    _keep_answers(config, log)
    counters = folder.finish(
        unit="planned samples",
        num_read=len(plan) + totals["without_picture"],
        num_kept=totals["kept"],
        refused=counts,
        pending=totals["pending"],
        extra_counters=_costs(config, survey.usage) | {"repaired": totals["repaired"]},
        described=[part.entry for part in parts],
        details={
            "plan": plan.counts | {"neighbour_pairs": plan.num_pairs, "not_drawn": plan.num_not_drawn},
            "answer_form": remembered_form(folder.work, config.teacher.base_url, config.teacher.model).form,
        },
    )
    if totals["pending"]:
        stop = stop or Stop(RESUMABLE, f"{totals['pending']:,} samples have no answer yet; run the same again")
        reason = _budget_line(config, survey.usage) if stop.is_budget_spent else stop.reason
        return Outcome(counters, stop.code, reason)
    if not totals["kept"]:
        return Outcome(counters, reason=f"done, and nothing was kept: {config.output}/_quarantine says why")
    return Outcome(counters)


def _write_parts(
    folder: JobFolder, config: SynthConfig, plan: Plan, question: Synthesis, survey: Survey
) -> Sequence[Part]:
    """The parts in their order; those whose answers are still the same are taken as they are."""
    files = PartFiles(folder.work / "parts", folder.path)
    items = part_items(plan, folder.work / "answers", survey)
    parts = files.written(items)
    task = WriteSamples(plan, question, config.near_duplicate, folder.work / "parts")
    with Progress("synth: writing", len(items), "parts", done=len(parts)) as progress:
        for part in files.write(task, [item for item in items if item["part"] not in parts], run_on_ray):
            parts[part.number] = part
            progress.update(len(parts))
    return [parts[item["part"]] for item in items]


def _keep_answers(config: SynthConfig, log: Path) -> None:
    """Add this run's answers to the shared cache."""
    if config.teacher.cache:
        try:
            AnswerCache.keep([file for own in log_files(log).values() for file in own], Path(config.teacher.cache))
        except OSError as error:  # the samples are there all the same
            print(f"teacher.cache: this run's answers are not all kept in it ({first_line(error)})", file=sys.stderr)


def _costs(config: SynthConfig, usage: Usage) -> dict[str, Any]:
    costs: dict[str, Any] = {
        "calls": usage.calls,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    if config.teacher.price(config.prices) is not None or usage.usd:
        costs["usd"] = usage.usd
    return costs


def _budget_line(config: SynthConfig, usage: Usage) -> str:
    spent = []
    if config.budget.calls is not None and usage.calls >= config.budget.calls:
        spent.append(f"{usage.calls:,} calls of budget.calls={config.budget.calls}")
    if config.budget.usd is not None:
        spent.append(f"{usage.usd:,.2f} USD of budget.usd={config.budget.usd:g}")
    return f"the budget is spent ({', '.join(spent)}); raise it to go on"
