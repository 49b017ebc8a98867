"""A judge at a server: every pair is asked about, and the samples are written from the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mme5core.asking.answer_log import Survey
from mme5core.asking.part_items import part_items
from mme5core.asking.patience import Stop
from mme5core.judge.candidates import ToJudge
from mme5core.judge.judged_rows import JudgedRows
from mme5core.judge.served import JudgePairs, JudgeQuestion, WriteJudged
from mme5core.parts import Part, PartFiles
from rayjobs.asking import ask_all, budget_line, costs, keep_in_shared_cache, make_shared_cache
from rayjobs.folder import JobFolder
from rayjobs.judge.config import JudgeConfig
from rayjobs.on_ray.tasks import run_on_ray

JUDGE = "judge"
"""What messages call the server: the name of its section."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The parts of the output, why the asking ended before all was asked, and what it has cost."""

    parts: Sequence[Part]
    stop: Stop | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)


def ask_judge(folder: JobFolder, config: JudgeConfig, to_judge: ToJudge, rows: JudgedRows) -> Judged:
    server, pairs = config.judge.server, JudgePairs(to_judge)
    make_shared_cache(server, JUDGE)
    question = JudgeQuestion(to_judge.samples, to_judge.candidates, server.max_picture_side)
    stop = ask_all(
        question,
        pairs,
        server,
        JUDGE,
        folder,
        prices=config.prices,
        budget=config.budget,
        num_workers=config.num_workers,
        job="judge",
        unit="pairs",
        refuses_away=True,
    )
    folder.check_owner()
    log = folder.work / "answers"
    survey = Survey.of(log, len(pairs.starts) - 1, run_on_ray)
    files = PartFiles(folder.work / "parts", folder.path)
    items = part_items(pairs, log, survey)
    parts = files.written(items)
    task = WriteJudged(to_judge, rows, question, folder.work / "parts")
    for part in files.write(task, [item for item in items if item["part"] not in parts], run_on_ray):
        parts[part.number] = part
    keep_in_shared_cache(server, JUDGE, log)
    if stop is not None and stop.is_budget_spent:
        stop = replace(stop, reason=budget_line(config.budget, survey.usage))
    return Judged([parts[item["part"]] for item in items], stop, costs(survey.usage, server.price(config.prices)))
