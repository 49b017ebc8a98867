"""What a worker gets of the rate limiter's actor, without Ray."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from rayjobs.on_ray import gate
from rayjobs.on_ray.gate import LimiterHandle, RateLimiterActor


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
