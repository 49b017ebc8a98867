"""What a request needs before it is sent: a permit of the gate that all workers share, or of one that is open."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class Gate(Protocol):
    """What every request passes, over all workers: the budget, the rates, the ceiling of calls in flight."""

    async def enter(self) -> bool:
        """Wait for a permit to send one request; False when the budget is spent."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait before a request is tried again; ends early when no request may enter any more."""
        ...

    def leave(
        self,
        *,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        retry_after_s: float | None = None,
        was_called: bool = True,
    ) -> None:
        """The request has ended.

        Args:
            retry_after_s: where the server said that it was too much (0: not for how long).
            was_called: False where it was never made, and costs nothing.
        """
        ...


class OpenGate:
    """Lets everything through."""

    async def enter(self) -> bool:
        return True

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def leave(self, **_: Any) -> None:
        pass
