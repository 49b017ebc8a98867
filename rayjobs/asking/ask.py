"""Asks about every record that has no answer yet, by actors that share one rate limiter."""

from __future__ import annotations

import json
import os

from mme5core.asking.answer_log import Survey, when_seen
from mme5core.asking.batch_record import num_with_server
from mme5core.asking.known_form import remembered_form
from mme5core.asking.patience import Stop
from mme5core.asking.question import Question, Records
from mme5core.asking.recorder import KEPT, PENDING, REFUSED
from mme5core.asking.settings import BudgetSettings, PriceSettings, ServerSettings
from mme5core.asking.worker import Asking
from mme5core.errors import RESUMABLE
from mme5core.progress import Progress, duration
from rayjobs.asking.actors import AskActor
from rayjobs.command.outcome import STOPPED
from rayjobs.command.signals import stopping_softly
from rayjobs.folder import JobFolder
from rayjobs.on_ray.connection import is_submitted
from rayjobs.on_ray.gate import LimiterHandle, LimiterState
from rayjobs.on_ray.resources import ASK, place
from rayjobs.on_ray.streams import ActorPool, stream
from rayjobs.on_ray.tasks import run_on_ray

# For the calls that are in flight when the job is told to stop; `ray job stop` kills it after 3 seconds.
GRACE_S, GRACE_OF_SUBMITTED_S = 10.0, 2.0
SHORT_PAUSE_S = 2.0  # of which nobody need be told
FILES_AT_ONCE = 2  # that a worker has open: the last calls of one go beside the first of the next


def api_key() -> str | None:
    return os.environ.get("OPENAI_API_KEY")


def ask_all(
    question: Question,
    records: Records,
    server: ServerSettings,
    role: str,
    folder: JobFolder,
    *,
    prices: PriceSettings,
    budget: BudgetSettings,
    num_workers: int,
    job: str,
    unit: str,
    refuses_away: bool = False,
) -> Stop | None:
    """Ask about every record without an answer; returns why it ended before all had one.

    Args:
        role, refuses_away: see `Asking`.
        folder: answers go to the log in its work folder as they come.
        job, unit: for the progress line.
    """
    work = folder.work
    (work / "answers").mkdir(exist_ok=True)
    survey = Survey.of(work / "answers", len(records.starts) - 1, run_on_ray)
    asking = Asking(
        server,
        role,
        question,
        records,
        work,
        server.price(prices),
        remembered_form(work, server.base_url, server.model),
        has_answer=survey.usage.num_answered > 0,
        in_batches=server.calls_per_batch is not None or num_with_server(work) > 0,
        owner=folder.owner,
        refuses_away=refuses_away,
    )
    return _ask(asking, survey, budget=budget, num_workers=num_workers, job=job, unit=unit)


def _ask(
    asking: Asking, survey: Survey, *, budget: BudgetSettings, num_workers: int, job: str, unit: str
) -> Stop | None:
    sizes = asking.records.starts[1:] - asking.records.starts[:-1]
    items = [{"file": n} for n in range(len(sizes)) if survey.num_settled[n] < sizes[n]]
    if not items:
        return None
    server, num_done = asking.server, int(survey.num_settled.sum())
    num_workers = min(num_workers, len(items))
    limiter = LimiterHandle.start(
        asking.log,
        survey.used_by_worker,
        api_key=api_key(),
        max_in_flight=num_workers * server.concurrency * (server.calls_per_batch or 1) + num_with_server(asking.work),
        budget_calls=budget.calls,
        budget_usd=budget.usd,
        # Batches have limits of their own, and the server keeps them.
        requests_per_minute=None if server.calls_per_batch else server.requests_per_minute,
        tokens_per_minute=None if server.calls_per_batch else server.tokens_per_minute,
    )
    files_at_once = max(FILES_AT_ONCE, server.concurrency) if asking.in_batches else FILES_AT_ONCE
    pool = ActorPool(AskActor, (asking, limiter), num_workers, place(ASK, num_workers), calls_at_once=files_at_once)
    stop: Stop | None = None
    written: dict[str, int] = {}
    grace_s = GRACE_OF_SUBMITTED_S if is_submitted() else GRACE_S
    with (
        Progress(job, int(sizes.sum()), unit, done=num_done) as progress,
        stopping_softly(0.0 if asking.in_batches else grace_s) as is_to_stop,  # nobody waits for a batch
    ):
        said = set[str]()

        def show(state: LimiterState) -> None:
            counts = state.counts
            for note in state.notes:
                if note not in said:
                    said.add(note)
                    progress.say(f"{job}: {note}")
            progress.update(
                num_done + counts[KEPT] + counts[REFUSED],
                how_it_stands(state, asking.role),
                is_paused=state.paused_s > SHORT_PAUSE_S,
            )
            if is_to_stop.is_set():
                limiter.halt()  # what is in flight is paid for

        with limiter.watched(show, api_key=api_key()):
            for row in stream(items, pool, num_tasks=len(items)):
                written |= json.loads(row.pop("written"))
                if row["code"] and (stop is None or stop.code == RESUMABLE != row["code"]):
                    stop = Stop(**row)
                if stop and stop.code != RESUMABLE:
                    limiter.halt()  # the calls that the other workers have out are paid for: they may end
    when_seen([(str(asking.log / name), size) for name, size in written.items()])
    if is_to_stop.is_set() and (stop is None or stop.is_budget_spent):
        return Stop(RESUMABLE, STOPPED)
    return stop


def how_it_stands(state: LimiterState, role: str) -> str:
    """What stands behind the progress line."""
    parts = [f"{state.counts[REFUSED]:,} refused, {state.counts[PENDING]:,} pending"]
    parts += [f"{state.usd:,.2f} USD"] if state.usd else []
    parts += [f"the {role} asks to wait {duration(state.paused_s)}"] if state.paused_s > SHORT_PAUSE_S else []
    return ", ".join(parts)
