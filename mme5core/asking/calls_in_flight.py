"""The calls of a batch while it is with the server, as the gate counts them."""

from __future__ import annotations

from mme5core.asking.gate import SharedGate


class CallsInFlight:
    """Calls of one batch: whatever happens to them, each leaves the gate exactly once.

    Attributes:
        were_sent: whether those that are open at the end have been paid for.
    """

    def __init__(self, gate: SharedGate, num_calls: int, *, were_sent: bool) -> None:
        self._gate, self._num_open, self.were_sent = gate, num_calls, were_sent

    def end(self, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """One has ended, and was paid for."""
        self._num_open -= 1
        self._gate.leave(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def give_back(self, num_calls: int) -> None:
        """So many will not be made."""
        self._num_open -= num_calls
        for _ in range(num_calls):
            self._gate.leave(was_called=False)

    def __enter__(self) -> CallsInFlight:
        return self

    def __exit__(self, *_: object) -> None:
        while self._num_open:
            self._num_open -= 1
            self._gate.leave(was_called=self.were_sent)
