"""What a worker gets of the rate limiter's actor, without Ray."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
import ray

from mme5core.asking.rates import RateLimiter, Report
from mme5core.asking.worker import Asking
from rayjobs.asking.actors import AskActor
from rayjobs.asking.ask import how_it_stands
from rayjobs.on_ray import gate
from rayjobs.on_ray.gate import LimiterHandle, LimiterState, RateLimiterActor


class Remote:
    """A method of an actor, called at once."""

    def __init__(self, method: Any) -> None:
        self.remote = method


def test_a_worker_waits_until_a_limiter_that_was_started_anew_has_been_given_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = RateLimiterActor.__new__(RateLimiterActor)
    actor._api_key, actor._has_key = None, False
    waits: list[float] = []

    def give_key_meanwhile(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            actor.hold_key("a key")

    class Handle:
        api_key = Remote(actor.api_key)

    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(gate.time, "sleep", give_key_meanwhile)
    assert LimiterHandle(Handle()).api_key() == "a key" and len(waits) == 2
    actor.hold_key(None)  # a server that wants none
    assert LimiterHandle(Handle()).api_key() is None


def test_the_driver_hears_of_pauses_and_of_what_workers_note_once() -> None:
    actor = RateLimiterActor.__new__(RateLimiterActor)
    actor._limiter, actor._counts, actor._notes, actor._has_key = RateLimiter(max_in_flight=4), {}, {}, True
    assert (actor.state().paused_s, actor.state().notes) == (0.0, ())
    for worker in ("a", "b"):
        report = Report(num_throttled=1, retry_after_s=60.0, notes=("it drops the pictures",))
        actor.exchange(worker, report, {"kept": 1}, 0)
    state = actor.state()
    assert 55 < state.paused_s <= 60 and state.notes == ("it drops the pictures",) and state.counts == {"kept": 2}


def test_a_pause_stands_in_the_progress_line() -> None:
    state = LimiterState(Counter({"refused": 2, "pending": 1}), 1.5, True, paused_s=3540.0)
    line = "2 refused, 1 pending, 1.50 USD, the teacher asks to wait 59 min 0 s"
    assert how_it_stands(state, "teacher") == line
    assert how_it_stands(replace(state, paused_s=1.0), "teacher") == "2 refused, 1 pending, 1.50 USD"


def test_no_actor_of_a_job_that_asks_has_the_key_as_an_argument() -> None:
    """Ray keeps constructor arguments in its statistics."""
    for actor in (AskActor, RateLimiterActor):
        assert "api_key" not in inspect.signature(actor).parameters
    assert not any("key" in field.name for field in fields(Asking))
