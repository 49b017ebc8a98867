"""The rate limiter as an actor on the driver's node, from which the workers of all nodes get their permits."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mme5core.asking.answer_log import Survey
from mme5core.asking.gate import Exchange
from mme5core.asking.rates import Grant, RateLimiter, Report, Usage
from mme5core.progress import called_every

SHOW_EVERY_S = 1.0
KEY_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class LimiterState:
    """What of the records has been settled in this run, by what it came to, and what all runs have paid.

    Args:
        paused_s: for how long nothing is asked, because the server wants it so.
        notes: of the workers, for people.
    """

    counts: Counter[str]
    usd: float
    has_key: bool
    paused_s: float = 0.0
    notes: tuple[str, ...] = ()


class RateLimiterActor:
    """A `RateLimiter` in a process of its own. One that died comes back with what the log and the workers report.

    It also hands the server's key to the workers: as a constructor argument the key would lie in Ray's statistics.

    Args:
        log: the folder of the answers.
        used: what each worker has used, by the log, when the job began.
    """

    def __init__(self, log: Path, used: Mapping[str, Usage], settings: dict[str, Any]) -> None:
        import ray

        if ray.get_runtime_context().was_current_actor_reconstructed:
            used = Survey.of_folder(log).used_by_worker
        self._limiter = RateLimiter(used=used, **settings)
        self._counts: dict[str, Mapping[str, int]] = {}
        self._notes: dict[str, None] = {}
        self._api_key: str | None = None
        self._has_key = False

    def hold_key(self, api_key: str | None) -> None:
        self._api_key, self._has_key = api_key, True

    def api_key(self) -> tuple[bool, str | None]:
        """Whether it has been given yet, and the key."""
        return self._has_key, self._api_key

    def exchange(self, worker: str, report: Report, counts: Mapping[str, int], wanted: int) -> Grant:
        self._counts[worker] = counts
        self._notes |= dict.fromkeys(report.notes)
        return self._limiter.exchange(worker, report, wanted)

    def state(self) -> LimiterState:
        return LimiterState(
            sum(map(Counter, self._counts.values()), Counter[str]()),
            self._limiter.used.usd,
            self._has_key,
            self._limiter.paused_s,
            tuple(self._notes),
        )

    def halt(self) -> None:
        self._limiter.halt()


class LimiterHandle:
    """The actor, as the driver and the workers use it; travels to the workers."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls, log: Path, used: Mapping[str, Usage], *, api_key: str | None, **settings: Any) -> LimiterHandle:
        """Start the actor on this node: it ends with the job.

        Args:
            settings: of `RateLimiter`.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        actor: Any = ray.remote(RateLimiterActor).options(**options).remote(log, used, settings)
        actor.hold_key.remote(api_key)
        return cls(actor)

    def exchange(self) -> Exchange:
        """What a worker's gate sends its reports through."""

        async def send(worker: str, report: Report, counts: Mapping[str, int], wanted: int) -> Grant:
            grant: Grant = await self._actor.exchange.remote(worker, report, counts, wanted)
            return grant

        return send

    def api_key(self) -> str | None:
        """The server's key, for a worker. Waits until an actor that was started anew has been given it again."""
        import ray

        while True:
            has_key, key = ray.get(self._actor.api_key.remote())
            if has_key:
                return cast("str | None", key)
            time.sleep(KEY_POLL_S)

    def halt(self) -> None:
        """Let nobody in any more; what is in flight may end."""
        self._actor.halt.remote()

    @contextlib.contextmanager
    def watched(self, show: Callable[[LimiterState], None], *, api_key: str | None) -> Iterator[None]:
        """Calls `show` with the state every second, from a thread of its own, and once at the end.

        Args:
            api_key: given again to an actor that has been started anew.
        """
        import ray
        import ray.exceptions

        def look() -> None:
            with contextlib.suppress(ray.exceptions.RayError):  # it is starting again
                state: LimiterState = ray.get(self._actor.state.remote(), timeout=SHOW_EVERY_S)
                if not state.has_key:
                    self._actor.hold_key.remote(api_key)
                show(state)

        with called_every(SHOW_EVERY_S, look):
            yield
