"""Training samples from pictures: synth --config mme5 input=laion/ output=samples/ teacher.base_url=URL"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mme5core.asking.answer_log import Survey
from mme5core.asking.known_form import remembered_form
from mme5core.asking.part_items import part_items
from mme5core.asking.patience import Stop
from mme5core.corpus.contents import number_contents
from mme5core.corpus.index import Index
from mme5core.corpus.picture_filters import PictureKey
from mme5core.corpus.scan import ScanShard, scan
from mme5core.corpus.stored_pictures import StoredPictures
from mme5core.parts import Part, PartFiles
from mme5core.progress import Progress
from mme5core.readers.shards import labels
from mme5core.synthesis.planning import Plan, make_plan, refused_samples
from mme5core.synthesis.question import Synthesis
from mme5core.synthesis.sample_parts import WriteSamples
from mme5core.types import Rejected
from rayjobs.asking import ask_all, budget_line, costs, keep_in_shared_cache, make_shared_cache
from rayjobs.command.outcome import BAD_INPUT, FAILED, RESUMABLE, Outcome
from rayjobs.folder import JobFolder, nothing_kept
from rayjobs.on_ray.connection import connected
from rayjobs.on_ray.tasks import run_on_ray
from rayjobs.synth.config import SynthConfig
from rayjobs.synth.inputs import corpus_shards, neighbour_files, plan_settings, read_options, synth_folder

TEACHER = "teacher"
"""What messages call the server: the name of its section."""


def run(config: SynthConfig) -> Outcome:
    shards = corpus_shards(config)
    settings = plan_settings(config)
    config.teacher.check(TEACHER, config.prices, config.budget)
    with synth_folder(config, shards) as folder:
        finished = folder.open()
        if finished:
            return Outcome(finished["counters"], reason="already done")
        make_shared_cache(config.teacher, TEACHER)
        places = tuple(labels(shards, config.input))
        with connected():
            key = PictureKey(config.filters)
            task = ScanShard(
                folder.work / "index",
                key,
                config.limit,
                replace(read_options(config), fetch=False),
                fetches=True,
                check=key.check_columns if config.filters.need_columns else None,
                refuses_unreachable=config.unreachable == "refuse",
            )
            index = scan(shards, places, task, job="synth", run=run_on_ray)
            plan = make_plan(
                index,
                settings,
                folder.work,
                neighbours=neighbour_files(config),
                num_workers=config.num_workers,
                run=run_on_ray,
            )
            pictures = StoredPictures(plan.shards, places, read_options(config), folder.work / "index")
            question = Synthesis(
                pictures,
                config.num_negatives,
                config.min_self_evaluation,
                config.min_criterion_score,
                config.teacher.max_picture_side,
            )
            stop = ask_all(
                question,
                plan,
                config.teacher,
                TEACHER,
                folder,
                prices=config.prices,
                budget=config.budget,
                num_workers=config.num_workers,
                job="synth",
                unit="samples",
                refuses_away=config.unreachable == "refuse",
            )
            return _finish(folder, config, index, plan, question, stop)


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
        totals.update({name: part.report.get(name, 0) for name in ("kept", "pending", "repaired", "away")})
    contents = number_contents(index, folder.work)

    def refused() -> Iterator[Rejected]:
        for rejected in refused_samples(index, contents, config.samples_per_image):
            totals["without_picture"] += 1
            yield rejected
        for part in parts:
            yield from part.refused()

    counts = folder.write_quarantine(refused())
    folder.take_parts({part.entry["name"]: part.file for part in parts})
    keep_in_shared_cache(config.teacher, TEACHER, log)
    counters = folder.finish(
        unit="planned samples",
        num_read=len(plan) + totals["without_picture"],
        num_kept=totals["kept"],
        refused=counts,
        pending=totals["pending"],
        extra_counters=costs(survey.usage, config.teacher.price(config.prices)) | {"repaired": totals["repaired"]},
        described=[part.entry for part in parts],
        details={
            "plan": plan.counts | {"neighbour_pairs": plan.num_pairs, "not_drawn": plan.num_not_drawn},
            "answer_form": remembered_form(folder.work, config.teacher.base_url, config.teacher.model).form,
        },
    )
    if totals["pending"]:
        waits = "an answer" if totals["pending"] > totals["away"] else "pictures that cannot be read now"
        stop = stop or Stop(RESUMABLE, f"{totals['pending']:,} samples wait for {waits}; run the same again")
        reason = budget_line(config.budget, survey.usage) if stop.is_budget_spent else stop.reason
        return Outcome(counters, stop.code, reason)
    if not totals["kept"]:
        return nothing_kept(counters, config.output, code=FAILED if index.num_usable else BAD_INPUT)
    return Outcome(counters)


def _write_parts(
    folder: JobFolder, config: SynthConfig, plan: Plan, question: Synthesis, survey: Survey
) -> Sequence[Part]:
    """The parts in their order; those whose answers are still the same are taken as they are."""
    files = PartFiles(folder.work / "parts", folder.path)
    items = part_items(plan, folder.work / "answers", survey)
    parts = {number: part for number, part in files.written(items).items() if not part.report.get("away")}
    task = WriteSamples(plan, question, config.near_duplicate, folder.work / "parts", config.unreachable == "refuse")
    with Progress("synth: writing", len(items), "parts", done=len(parts)) as progress:
        for part in files.write(task, [item for item in items if item["part"] not in parts], run_on_ray):
            parts[part.number] = part
            progress.update(len(parts))
    return [parts[item["part"]] for item in items]
